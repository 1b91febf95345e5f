"""The Docker Engine API: the HTTP server, the routes (one module a noun) and the daemon.

``server`` accepts connections and reads heads; ``exchange`` is one request and its answer;
``routing`` finds the handler, negotiates the version and turns errors into answers; ``query`` and
``source`` read what a request carries; ``routes`` calls the engine; ``daemon`` is the process.
Nothing below this package knows about HTTP.
"""
