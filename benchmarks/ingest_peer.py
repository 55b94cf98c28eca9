"""img2dataset on a list, as its documentation runs it; for `ingest.py`, with the Python of a venv that has it.

python -m venv V && V/bin/pip install img2dataset==1.47.0
V/bin/python benchmarks/ingest_peer.py '{"url_list": ..., "output_folder": ...}'
"""

import json
import sys

from img2dataset import download

if __name__ == "__main__":  # its workers import this file again
    download(**json.loads(sys.argv[1]))
