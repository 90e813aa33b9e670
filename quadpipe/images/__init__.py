"""Image files -> uint8 pixels: decoding, colour, orientation, crops, and which library does it."""
