"""Plain HTTP requests to a server of the app, with an arbitrary host."""

import http.client


def status(port, path, host, method="GET", **headers):
    """Return the status of the answer to one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request(method, path, headers={"Host": f"{host}:{port}", **headers})
        return connection.getresponse().status
    finally:
        connection.close()


def websocket_status(port, host):
    """Return the status of a WebSocket handshake by a page of that host: 101 if accepted."""
    return status(
        port,
        "/_stcore/stream",
        host,
        Origin=f"http://{host}:{port}",
        Connection="Upgrade",
        Upgrade="websocket",
        **{
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            "Sec-WebSocket-Protocol": "streamlit",
        },
    )
