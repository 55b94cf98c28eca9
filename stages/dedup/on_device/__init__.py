"""The search for pairs of similar vectors on one device, such as a GPU. Imports nothing of `dedup`."""
