"""From images to discrete codes: DALL-E's encoder, nearest patches. Systems that predict codes name one (`use`).

May import `blocks`.
"""
