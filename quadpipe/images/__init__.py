"""Image files -> uint8 pixels: decoding, color, orientation, crops, and the imaging library."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels per channel, in 0..1."""
