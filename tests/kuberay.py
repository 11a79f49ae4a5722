"""The fields of a RayJob of KubeRay (ray.io/v1), as a JSON schema that refuses all others.

Written from KubeRay's documented API: its CRD is in no package that tests could install. Pod templates are left open
here; the tests check them against Kubernetes' own schema.
"""

from typing import Any

TEXT, FLAG, ANY = {"type": "string"}, {"type": "boolean"}, {"type": "object"}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
NUMBER = {"type": "number", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def closed(*required: str, **properties: Any) -> dict[str, Any]:
    """An object with these properties and no others."""
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


HEAD = closed(
    "template",
    rayStartParams=TEXTS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    headService=ANY,
    enableIngress=FLAG,
    labels=TEXTS,
    resources=TEXTS,
    template=ANY,
)
WORKERS = closed(
    "groupName",
    "minReplicas",
    "maxReplicas",
    "template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    suspend=FLAG,
    labels=TEXTS,
    resources=TEXTS,
    rayStartParams=TEXTS,
    scaleStrategy=closed(workersToDelete={"type": "array", "items": TEXT}),
    template=ANY,
)
CLUSTER = closed(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=closed(mode=one_of("disabled", "token"), secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=closed(
        resources=ANY,
        image=TEXT,
        imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
        securityContext=ANY,
        env={"type": "array"},
        envFrom={"type": "array"},
        volumeMounts={"type": "array"},
        version=one_of("v1", "v2"),
        idleTimeoutSeconds=COUNT,
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    ),
    gcsFaultToleranceOptions=ANY,
    headServiceAnnotations=TEXTS,
    managedBy=TEXT,
    suspend=FLAG,
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
RAYJOB = closed(
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed("name", name={"type": "string", "maxLength": 47}, namespace=TEXT, labels=TEXTS, annotations=TEXTS),
    spec=closed(
        "entrypoint",
        "rayClusterSpec",
        entrypoint=TEXT,
        entrypointNumCpus=NUMBER,
        entrypointNumGpus=NUMBER,
        entrypointResources=TEXT,
        runtimeEnvYAML=TEXT,
        jobId=TEXT,
        metadata=TEXTS,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        activeDeadlineSeconds=COUNT,
        backoffLimit=COUNT,
        submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        submitterConfig=closed(backoffLimit=COUNT),
        submitterPodTemplate=ANY,
        deletionStrategy=ANY,
        clusterSelector=TEXTS,
        managedBy=TEXT,
        suspend=FLAG,
        rayClusterSpec=CLUSTER,
    ),
)
