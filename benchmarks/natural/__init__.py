"""Networks with their ImageNet weights, on images cut from photographs of free packages."""
