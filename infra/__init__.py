"""The local stack; images, Compose and clusters."""
