"""What an image is: references, configs, manifests, archives, and packing one out of the host."""
