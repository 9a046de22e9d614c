"""The REST API and the pages: a WSGI application beside the WebSockets, on the same port."""
