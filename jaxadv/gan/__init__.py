"""A conditional GAN for synthetic training images."""
