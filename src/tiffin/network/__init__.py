"""Networks: addresses, links, bridges, the firewall, published ports and names."""
