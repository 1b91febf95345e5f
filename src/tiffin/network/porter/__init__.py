"""The porter: a small process, one an engine root, that answers names and holds published ports.

It does what must go on when the daemon does not:

- it answers the embedded name server's questions (:mod:`~tiffin.network.porter.names`,
  :mod:`~tiffin.network.porter.questions`): the sockets are made by the daemon inside each
  container's namespace, and handed over;
- it holds the sockets of published ports, and carries what the firewall can't redirect: connections
  to ``::1``, and IPv6 connections to a container without IPv6
  (:mod:`~tiffin.network.porter.relay`).

A *sandbox* is a container as the porter sees it: sockets, networks, name servers. The daemon tells
of sandboxes and names over a unix socket, one message a packet, and waits for no answer: sockets
queue what arrives until the porter reads it. Each sandbox comes with a pidfd of its container; when
that ends, the porter lets go of all that belonged to it, so that nothing outlives a container even
if no daemon runs. The porter leaves when it has no sandbox and no daemon.

Like the keeper, it imports next to nothing.
"""
