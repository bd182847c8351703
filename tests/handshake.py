"""Plain HTTP requests to a server of the app, with a host of the sender's choice."""

import http.client


def status(port, path, host, method="GET", **headers):
    """Status of the answer to one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request(method, path, headers={"Host": f"{host}:{port}", **headers})
        return connection.getresponse().status
    finally:
        connection.close()


def websocket_status(port, host):
    """Status of the answer to a WebSocket handshake by a page of that host: 101 where it is accepted."""
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
