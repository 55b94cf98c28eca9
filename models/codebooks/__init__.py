"""From images to discrete codes: DALL-E's encoder and decoder, nearest patches. Systems that predict codes name one (`use`).

May import `blocks`.
"""
