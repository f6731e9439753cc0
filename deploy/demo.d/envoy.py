"""Envoy's static bootstraps: as waypoint, as ingress gateway, and as network gateway, the way Istio sets it up, without Istio.

    waypoint         ends tunnels (CONNECT), looks at the HTTP inside, and opens tunnels of its own to the endpoints
    ingress gateway  takes plain HTTP, and opens tunnels
    network gateway  ends outer tunnels, and leads what is inside to an endpoint, unread

An Envoy listener can stand inside Envoy itself ("internal"): that is how HTTP gets into a tunnel and out of it. Each function returns
the bootstrap as a dictionary; JSON is YAML. `cert` is a directory as `ztctl ca issue` makes it.
"""
import os

HBONE = 15008
TYPES = "type.googleapis.com/envoy.extensions."


def typed(kind, **fields):
    return {"@type": TYPES + kind, **fields}


def _tls(cert, server):
    """Both ends ask for a certificate of the mesh; who may come in is the policies' business."""
    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        "tls_certificates": [{"certificate_chain": {"filename": os.path.join(cert, "cert-chain.pem")},
                              "private_key": {"filename": os.path.join(cert, "key.pem")}}],
        "validation_context": {"trusted_ca": {"filename": os.path.join(cert, "root-cert.pem")},
                               "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}}]},
    }
    kind = "DownstreamTlsContext" if server else "UpstreamTlsContext"
    more = {"require_client_certificate": True} if server else {}
    return {"name": "tls", "typed_config": typed(f"transport_sockets.tls.v3.{kind}", common_tls_context=common, **more)}


def _socket(ip, port):
    return {"socket_address": {"address": ip, "port_value": port}}


def _internal(listener):
    return {"envoy_internal_address": {"server_listener_name": listener}}


def _cluster(name, *addresses, **more):
    return {"name": name, "type": "STATIC", "connect_timeout": "2s", "lb_policy": "ROUND_ROBIN", **more,
            "load_assignment": {"cluster_name": name, "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": address}} for address in addresses]}]}}


def _http(stat, routes, *, filters=(), **more):
    """An HTTP connection manager with these routes."""
    host = {"name": "all", "domains": ["*"], "routes": routes}
    router = {"name": "router", "typed_config": typed("filters.http.router.v3.Router")}
    return {"name": "http", "typed_config": typed("filters.network.http_connection_manager.v3.HttpConnectionManager", stat_prefix=stat,
                                                  route_config={"virtual_hosts": [host]}, http_filters=[*filters, router], **more)}


def _http2(window, **more):
    return {**more, **({"initial_stream_window_size": window, "initial_connection_window_size": window} if window else {})}


def _only(identities):
    """A filter that knows clients by their certificates."""
    who = [{"authenticated": {"principal_name": {"exact": identity}}} for identity in identities]
    return {"name": "who", "typed_config": typed("filters.network.rbac.v3.RBAC", stat_prefix="who", rules={"action": "ALLOW", "policies": {
        "clients": {"permissions": [{"any": True}], "principals": who}}})}


def _ends_tunnels(cert, cluster, streams=0, window=0, clients=()):
    """The listener on 15008: every CONNECT's stream goes to a cluster as bare bytes. After so many streams a tunnel gets GOAWAY."""
    route = {"match": {"connect_matcher": {}},
             "route": {"cluster": cluster, "timeout": "0s", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]}}
    return {"name": "connect_terminate", "address": _socket("0.0.0.0", HBONE), "filter_chains": [
        {"transport_socket": _tls(cert, True),
         "filters": [*([_only(clients)] if clients else []), _http("connect_terminate", [route], codec_type="HTTP2", stream_idle_timeout="0s",
                           http2_protocol_options=_http2(window, allow_connect=True), upgrade_configs=[{"upgrade_type": "CONNECT"}],
                           common_http_protocol_options={"max_requests_per_connection": streams} if streams else {})]}]}


def _tunnel(name, ip, authority, cert, window=0):
    """What leads to an authority through a tunnel to ip: an internal listener, and (clusters) the way to it and the way out of it.
    A peer that does not answer PINGs is given up."""
    proxy = typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix=name, cluster=f"{name}-out",
                  tunneling_config={"hostname": authority})
    listener = {"name": name, "internal_listener": {}, "filter_chains": [
        {"filters": [{"name": "tcp", "typed_config": proxy}]}]}
    http2 = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
        "upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": _http2(
            window, connection_keepalive={"interval": "1s", "timeout": "2s"})})}
    return listener, [_cluster(name, _internal(name)), _cluster(f"{name}-out", _socket(ip, HBONE), transport_socket=_tls(cert, False),
                                                                typed_extension_protocol_options=http2)]


def _split(weights):
    return {"match": {"prefix": "/"},
            "route": {"weighted_clusters": {"clusters": [{"name": n, "weight": w} for n, w in weights.items()]}, "timeout": "0s"}}


def _bootstrap(listeners, clusters):
    return {"static_resources": {"listeners": listeners, "clusters": clusters},
            "bootstrap_extensions": [{"name": "internal", "typed_config": typed("bootstrap.internal_listener.v3.InternalListener")}]}


def _to_backends(backends, cert, window=0):
    """backends: {name: (ip, authority, weight)} -> listeners, clusters, the route that shares between them."""
    listeners, clusters = [], []
    for name, (ip, authority, _) in backends.items():
        listener, more = _tunnel(name, ip, authority, cert, window)
        listeners.append(listener)
        clusters += more
    return listeners, clusters, _split({name: weight for name, (_, _, weight) in backends.items()})


def waypoint(cert, backends, streams=0, window=0, clients=()):
    """GET is allowed, anything else is not; what is allowed is shared by weight. clients: identities; none: everybody of the mesh."""
    rbac = {"name": "rbac", "typed_config": typed("filters.http.rbac.v3.RBAC", rules={"action": "ALLOW", "policies": {"get-only": {
        "permissions": [{"header": {"name": ":method", "string_match": {"exact": "GET"}}}], "principals": [{"any": True}]}}})}
    listeners, clusters, route = _to_backends(backends, cert, window)
    inside = {"name": "main", "internal_listener": {}, "filter_chains": [{"filters": [_http("main", [route], filters=[rbac])]}]}
    return _bootstrap([_ends_tunnels(cert, "main", streams, window, clients), inside, *listeners], [_cluster("main", _internal("main")), *clusters])


def ingress_gateway(cert, port, backends):
    listeners, clusters, route = _to_backends(backends, cert)
    plain = {"name": "plain", "address": _socket("0.0.0.0", port), "filter_chains": [{"filters": [_http("plain", [route])]}]}
    return _bootstrap([plain, *listeners], clusters)


def network_gateway(cert, endpoints):
    """endpoints: addresses whose port 15008 ends the inner tunnels, taken in turn."""
    return _bootstrap([_ends_tunnels(cert, "far")], [_cluster("far", *(_socket(ip, HBONE) for ip in endpoints))])


def command(binary, path):
    return (binary, "-c", path, "--concurrency", "1", "--disable-hot-restart", "-l", "warning")
