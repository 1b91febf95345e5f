"""The benchmark: tiffin and its peers, side by side on one machine."""
