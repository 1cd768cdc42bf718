"""The calls of the Container Runtime Interface (runtime.v1) that a kubelet makes for a pod, to a real containerd.

The messages have the fields that are used here, by their names and numbers in Kubernetes' ``cri-api`` (``api.proto``).
"""

from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_MESSAGES = {
    "Empty": "",
    "Pair": "key=1:string value=2:string",
    "Int64Value": "value=1:int64",
    "PodSandboxMetadata": "name=1:string uid=2:string namespace=3:string attempt=4:uint32",
    "NamespaceOption": "network=1:int32 pid=2:int32 ipc=3:int32",
    "LinuxSandboxSecurityContext": "namespace_options=1:NamespaceOption",
    "LinuxPodSandboxConfig": "cgroup_parent=1:string security_context=2:LinuxSandboxSecurityContext",
    "PodSandboxConfig": "metadata=1:PodSandboxMetadata hostname=2:string log_directory=3:string linux=8:LinuxPodSandboxConfig",
    "RunPodSandboxRequest": "config=1:PodSandboxConfig",
    "PodSandboxId": "pod_sandbox_id=1:string",
    "PodIP": "ip=1:string",
    "PodSandboxNetworkStatus": "ip=1:string additional_ips=2:PodIP*",
    "PodSandboxStatus": "id=1:string metadata=2:PodSandboxMetadata state=3:int32 network=5:PodSandboxNetworkStatus",
    "PodSandboxStatusResponse": "status=1:PodSandboxStatus",
    "PodSandbox": "id=1:string metadata=2:PodSandboxMetadata state=3:int32",
    "ListPodSandboxResponse": "items=1:PodSandbox*",
    "ImageSpec": "image=1:string",
    "ContainerMetadata": "name=1:string attempt=2:uint32",
    "Mount": "container_path=1:string host_path=2:string readonly=3:bool",
    "Capability": "add_capabilities=1:string* drop_capabilities=2:string*",
    "SecurityProfile": "profile_type=1:int32",
    "LinuxContainerSecurityContext": (
        "capabilities=1:Capability privileged=2:bool namespace_options=3:NamespaceOption run_as_user=5:Int64Value "
        "readonly_rootfs=7:bool supplemental_groups=8:int64* no_new_privs=11:bool run_as_group=12:Int64Value "
        "seccomp=15:SecurityProfile"
    ),
    "LinuxContainerResources": "memory_limit_in_bytes=4:int64",
    "LinuxContainerConfig": "resources=1:LinuxContainerResources security_context=2:LinuxContainerSecurityContext",
    "ContainerConfig": (
        "metadata=1:ContainerMetadata image=2:ImageSpec command=3:string* args=4:string* envs=6:Pair* mounts=7:Mount* "
        "log_path=11:string linux=15:LinuxContainerConfig"
    ),
    "CreateContainerRequest": "pod_sandbox_id=1:string config=2:ContainerConfig sandbox_config=3:PodSandboxConfig",
    "ContainerId": "container_id=1:string",
    "ContainerStatus": "id=1:string state=3:int32 exit_code=7:int32 reason=10:string message=11:string",
    "ContainerStatusResponse": "status=1:ContainerStatus",
    "ExecSyncRequest": "container_id=1:string cmd=2:string* timeout=3:int64",
    "ExecSyncResponse": "stdout=1:bytes stderr=2:bytes exit_code=3:int32",
}

_CALLS = {
    "RunPodSandbox": ("RunPodSandboxRequest", "PodSandboxId"),
    "StopPodSandbox": ("PodSandboxId", "Empty"),
    "RemovePodSandbox": ("PodSandboxId", "Empty"),
    "PodSandboxStatus": ("PodSandboxId", "PodSandboxStatusResponse"),
    "ListPodSandbox": ("Empty", "ListPodSandboxResponse"),
    "CreateContainer": ("CreateContainerRequest", "ContainerId"),
    "StartContainer": ("ContainerId", "Empty"),
    "ContainerStatus": ("ContainerId", "ContainerStatusResponse"),
    "ExecSync": ("ExecSyncRequest", "ExecSyncResponse"),
    "Status": ("Empty", "Empty"),
}
"""Names of some messages are shorter than Kubernetes'; on the wire there are only the numbers."""

_FIELD = descriptor_pb2.FieldDescriptorProto


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="cri.proto", package="cri", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields.split():
            field, _, kind = text.partition("=")
            number, _, kind = kind.partition(":")
            label = _FIELD.LABEL_REPEATED if kind.endswith("*") else _FIELD.LABEL_OPTIONAL
            kind = kind.removesuffix("*")
            added = message.field.add(name=field, number=int(number), label=label)
            if kind in _MESSAGES:
                added.type, added.type_name = _FIELD.TYPE_MESSAGE, f".cri.{kind}"
            else:
                added.type = _FIELD.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"cri.{name}")) for name in _MESSAGES}


_CLASSES = _classes()


class Cri:
    """A connection to containerd; ``call`` raises grpc.RpcError with what containerd says."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}", options=[("grpc.max_reconnect_backoff_ms", 500)])
        self._calls = {
            name: self._channel.unary_unary(
                f"/runtime.v1.RuntimeService/{name}",
                request_serializer=_CLASSES[asked].SerializeToString,
                response_deserializer=_CLASSES[answered].FromString,
            )
            for name, (asked, answered) in _CALLS.items()
        }

    def call(self, name: str, **fields: Any) -> Any:
        """One call; a message may be given as a dict of its fields."""
        return self._calls[name](_CLASSES[_CALLS[name][0]](**fields), timeout=120, wait_for_ready=True)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()
