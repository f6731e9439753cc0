"""What the daemons know of the mesh, from a file that both watch; a certificate authority for development beside it."""
import os
import time

STRICT = "istio-system/istio_converted_static_strict"
POLICIES = {
    "allow-nothing": """- name: allow-nothing
  namespace: ns2
  scope: Namespace
  action: Allow
  rules: []
  dryRun: false
""",
    "allow-sleep": """- name: allow-sleep
  namespace: ns2
  scope: Namespace
  action: Allow
  rules: [[[{principals: [!Exact cluster.local/ns/ns1/sa/sleep]}]]]
  dryRun: false
""",
    "only-the-waypoint": """- name: only-the-waypoint
  namespace: ns2
  scope: Namespace
  action: Allow
  rules: [[[{principals: [!Exact cluster.local/ns/ns2/sa/proxy]}]]]
  dryRun: false
""",
    "only-the-ingress": """- name: only-the-ingress
  namespace: ns2
  scope: Namespace
  action: Allow
  rules: [[[{principals: [!Exact cluster.local/ns/ns2/sa/ingress]}]]]
  dryRun: false
""",
    "strict": f"""- name: {STRICT.split('/')[1]}
  namespace: {STRICT.split('/')[0]}
  scope: WorkloadSelector
  action: Deny
  rules: [[[{{notPrincipals: [!Presence []]}}]]]
  dryRun: false
""",
}


def workload(pod, host, strict):
    services = f'{{"ns2/{host}": {{80: 8080}}}}' if pod.server else "{}"
    policies = f'["{STRICT}"]' if strict and pod.server else "[]"
    return f"""- uid: Kubernetes//Pod/{pod.ns}/{pod.name}
  name: {pod.name}
  namespace: {pod.ns}
  serviceAccount: {pod.account}
  trustDomain: cluster.local
  clusterId: Kubernetes
  canonicalName: {pod.name}
  canonicalRevision: latest
  workloadName: {pod.name}
  workloadType: deployment
  workloadIps: ["{pod.ip}"]
  protocol: {"HBONE" if pod.enrolled else "TCP"}
  node: {pod.node.name}
  network: "{pod.network}"
  authorizationPolicies: {policies}
  services: {services}
{pod.record_more}"""


class FromFile:
    def __init__(self, lab):
        self.lab = lab
        self.path = lab.file("mesh.yaml")

    def environment(self, _node):
        return {"XDS_ADDRESS": "", "LOCAL_XDS_PATH": self.path, "LOCAL_CA_PATH": self.lab.file("ca")}

    def start(self):
        self.publish(())

    def publish(self, policies):
        """The file, written beside it and renamed. It is in force within 100 ms; the story waits for what it expects."""
        lab = self.lab
        text = "workloads:\n" + "".join(workload(p, lab.host, "strict" in policies) for p in lab.pods) + f"""services:
- name: echo
  namespace: ns2
  hostname: {lab.host}
  vips: ["/{lab.vip}"]
  ports: {{80: 8080}}
{lab.service_more}"""
        if policies:
            text += "policies:\n" + "".join(POLICIES[name] for name in policies)
        with open(self.path + ".new", "w", encoding="ascii") as f:
            f.write(text)
        os.rename(self.path + ".new", self.path)
        time.sleep(0.3)
        return []
