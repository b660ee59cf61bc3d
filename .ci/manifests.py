"""Compares the manifests under examples/kubernetes, and the rules and the dashboard of examples/grafana, with each other and the code.

Prints the manifests of Kubernetes' own kinds, for the validator. Writes the autoscalers' queries to a file of rules.
"""

import json
import pathlib
import re
import sys
import textwrap

import yaml

[QUERIES] = sys.argv[1:]
MANIFESTS = pathlib.Path("examples/kubernetes")
GRAFANA = pathlib.Path("examples/grafana")
OWN_KINDS = {
    "serviceaccount": ("v1", "ServiceAccount"),
    "deployment": ("apps/v1", "Deployment"),
    "pdb": ("policy/v1", "PodDisruptionBudget"),
    "networkpolicy": ("networking.k8s.io/v1", "NetworkPolicy"),
    "hpa": ("autoscaling/v2", "HorizontalPodAutoscaler"),
    "hpa-lag": ("autoscaling/v2", "HorizontalPodAutoscaler"),
    "migration-job": ("batch/v1", "Job"),
}
OTHER_KINDS = {
    "kustomization": ("kustomize.config.k8s.io/v1beta1", "Kustomization"),
    "keda-scaledobject": ("keda.sh/v1alpha1", "ScaledObject"),
    "podmonitor": ("monitoring.coreos.com/v1", "PodMonitor"),
    "prometheusrule": ("monitoring.coreos.com/v1", "PrometheusRule"),
    "prometheus-adapter-values": (None, None),
}
PREFIX = "pupsourcing_orchestrator_"
failures = []


def same(what, *values):
    if any(value != values[0] for value in values):
        failures.append(f"{what}: {' / '.join(map(str, values))}")


def true(what, holds):
    if not holds:
        failures.append(what)


files = {path.stem: yaml.safe_load(path.read_text()) for path in MANIFESTS.glob("*.yaml")}
kinds = OWN_KINDS | OTHER_KINDS
same("files", sorted(files), sorted(kinds))
for name, manifest in files.items():
    same(f"apiVersion and kind of {name}", (manifest.get("apiVersion"), manifest.get("kind")), kinds.get(name))
readme = (MANIFESTS / "README.md").read_text()
for name in files:
    true(f"README.md does not mention {name}.yaml", f"{name}.yaml" in readme)

# The settings that a worker program reads: a test keeps the table equal to the code.
program_settings = pathlib.Path("src/cli/settings.md").read_text()
commands = pathlib.Path("src/cli/arguments.rs").read_text()
site = "".join(path.read_text() for path in pathlib.Path("src/http").glob("*.rs"))
dockerfile = pathlib.Path("Dockerfile").read_text()

# The pods, and what selects them.
deployment = files["deployment"]["spec"]
template = deployment["template"]
pod, job_pod = template["spec"], files["migration-job"]["spec"]["template"]["spec"]
[container], [job] = pod["containers"], job_pod["containers"]
selectors = [files["pdb"]["spec"]["selector"], files["podmonitor"]["spec"]["selector"], deployment["selector"]]
network = files["networkpolicy"]["spec"]
selectors.append(network["podSelector"])
selectors += [constraint["labelSelector"] for constraint in pod["topologySpreadConstraints"]]
for selector in selectors:
    same("who is selected", selector["matchLabels"], template["metadata"]["labels"])
name = files["deployment"]["metadata"]["name"]
for scaler in ["hpa", "hpa-lag", "keda-scaledobject"]:
    same(f"what {scaler} scales", files[scaler]["spec"]["scaleTargetRef"]["name"], name)
same("service account", pod["serviceAccountName"], files["serviceaccount"]["metadata"]["name"])
same("image", container["image"], job["image"])
for one in [pod, job_pod]:
    ids = one["securityContext"]["runAsUser"], one["securityContext"]["runAsGroup"]
    true(f"the Dockerfile's user is not {ids}", "\nUSER {}:{}\n".format(*ids) in dockerfile)
true("migrate is not an argument of the worker", job["args"] == ["migrate"] and '"migrate"' in commands)

# Ports and paths.
[port] = container["ports"]
[endpoint] = files["podmonitor"]["spec"]["podMetricsEndpoints"]
settings = {setting["name"]: setting.get("value") for one in [container, job] for setting in one["env"]}
annotations = template["metadata"]["annotations"]
same("port", f"0.0.0.0:{port['containerPort']}", f"0.0.0.0:{annotations['prometheus.io/port']}", settings["METRICS_ADDR"])
true("another default port", f'| {settings["METRICS_ADDR"]} |' in program_settings and f"\nEXPOSE {port['containerPort']}\n" in dockerfile)
[ingress] = network["ingress"]
same("the only way in", ingress["ports"], [{"port": port["name"]}])
true("every pod may connect to the workers", ingress["from"])
same("ways out", [[way["port"] for way in rule["ports"]] for rule in network["egress"]], [[53, 53], [5432]])
paths = [annotations["prometheus.io/path"], endpoint["path"]]
for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
    same(f"port of {probe}", container[probe]["httpGet"]["port"], port["name"], endpoint["port"])
    paths.append(container[probe]["httpGet"]["path"])
for path in paths:
    true(f"nothing is served at {path}", f'"{path}" =>' in site)

# Settings: those of the manifests, and those that the README names.
for setting in set(settings) | set(re.findall(r"`(ORCHESTRATOR_[A-Z_]+)", readme)):
    true(f"no program reads {setting}", f"| `{setting}` |" in program_settings)
for one in [container, job]:
    for setting in one["env"]:
        if secret := setting.get("valueFrom", {}).get("secretKeyRef"):
            made = f"create secret generic {secret['name']} --from-literal={secret['key']}="
            true(f"README.md does not say how to make {secret}", made in " ".join(readme.replace("\\\n", " ").split()))

# Metrics: each one exists, and has the labels that the queries use.
metrics = {}
for line in pathlib.Path("src/metrics/metrics.md").read_text().splitlines():
    if row := re.match(r"\| `(\w+)` \| (\w+) \| (.*?) \|", line):
        labels = set(re.findall(r"`(\w+)`", row[3]))
        series = ["_bucket", "_sum", "_count"] if row[2] == "histogram" else [""]
        metrics |= {PREFIX + row[1] + end: labels | ({"le"} if end == "_bucket" else set()) for end in series}
rules_text = (GRAFANA / "rules.yml").read_text()
copied = (MANIFESTS / "prometheusrule.yaml").read_text().partition("\nspec:\n")[2]
original = textwrap.indent("groups:" + rules_text.partition("\ngroups:")[2], "  ")
true("prometheusrule.yaml does not hold the groups of examples/grafana/rules.yml", copied == original)
rules = [rule for group in yaml.safe_load(rules_text)["groups"] for rule in group["rules"]]
for record in [rule["record"] for rule in rules if "record" in rule]:
    metrics[record] = set(re.findall("replica_set|projection", record.split(":")[0]))
dashboard = json.loads((GRAFANA / "dashboard.json").read_text())
panels = [panel for row in dashboard["panels"] for panel in [row, *row.get("panels", [])]]
shown = [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", [])]
shown += [(variable["name"], variable["definition"]) for variable in dashboard["templating"]["list"] if "definition" in variable]
same("ids of panels", len({panel["id"] for panel in panels}), len(panels))
[adapter] = files["prometheus-adapter-values"]["rules"]["external"]
[trigger] = files["keda-scaledobject"]["spec"]["triggers"]
matchers = 'namespace="default",replica_set="main-projections"'
series = adapter["seriesQuery"].split("{")[0]
filled = adapter["metricsQuery"].replace("<<.Series>>", series).replace("<<.LabelMatchers>>", matchers)
queries = {"adapter": filled, "keda": trigger["metadata"]["query"], "series": adapter["seriesQuery"]}
for where, expression in [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules] + shown + list(queries.items()):
    used = re.findall(rf"[\w:]*{PREFIX}[\w:]*", expression)
    true(f"{where} uses no metric", used)
    asked = ",".join(re.findall(r"(?:by|on) \((.*?)\)", expression) + re.findall(r"\{(.*?)\}", expression))
    for label in re.findall(r"(\w+)(?:\s*[=!]~?\"[^\"]*\")?(?:,|$)", asked.replace(" ", "")):
        for metric in used:
            true(f"{where}: {metric} has no label {label}", label in metrics.get(metric, set()) | {"namespace"})
same("the lag's name", adapter["name"]["as"], files["hpa-lag"]["spec"]["metrics"][0]["external"]["metric"]["name"])
same("the lag's query", " ".join(filled.split()), " ".join(trigger["metadata"]["query"].split())[len("sum( "):-len(" )")])
for metric in re.findall(rf"`{PREFIX}(\w+)`|`(\w+_(?:total|seconds|events|up|halted|workers|state))`", readme):
    metric = PREFIX + "".join(metric)
    true(f"README.md: there is no metric {metric}", any(known.startswith(metric) for known in metrics))

records = [{"record": f"query:{query}", "expr": expression} for query, expression in queries.items()]
pathlib.Path(QUERIES).write_text(json.dumps({"groups": [{"name": "queries", "rules": records}]}))
print(" ".join(str(MANIFESTS / f"{name}.yaml") for name in sorted(OWN_KINDS)))
if failures:
    sys.exit("examples:\n  " + "\n  ".join(failures))
