"""Several replicas of `csm serve` behind Ray Serve, a GPU each; a conversation stays with the replica that began it.

    pip install "ray[serve]"
    CSM_MODEL=runs/quickstart/export serve run examples.ray_serve:app
    curl localhost:8000/v1/audio/speech -H "Content-Type: application/json" -H "x-session-id: anna" -o hello.mp3 \\
        -d '{"model": "csm", "voice": "speaker_0", "input": "Hello."}'

CSM_REPLICAS is their number (2), CSM_DATA the folder of voices and conversations, with one for each replica in it.
Clients that hold a conversation, or use an uploaded voice, send the same `x-session-id` with each request; requests
without one go anywhere. A conversation whose replica is gone has to begin anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import RequestRouterConfig

from csm import load_generator
from csm.serving.app import create_app
from csm.serving.marks import Marking
from csm.serving.service import Service
from csm.serving.settings import Settings
from csm.watermark.choice import load_watermark


def build_app() -> FastAPI:
    """The application of one replica. The weights are loaded before Ray sends it a request."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = load_generator(os.environ["CSM_MODEL"], device, slots=8, watermark="none")
    mark = load_watermark("auto", streams=True)
    replica = serve.get_replica_context().rank.rank  # 0, 1, ...: a replica that is started again finds its folder
    data = Path(os.environ.get("CSM_DATA", "served")) / f"replica-{replica}"
    settings = Settings(names=("csm",), data=data)
    return create_app(Service(lambda: generator, settings, Marking(mark.name, mark.stream)))


app = serve.deployment(
    serve.ingress(build_app)(),
    name="speech",
    num_replicas=int(os.environ.get("CSM_REPLICAS", "2")),
    max_ongoing_requests=256,  # the server has limits of its own
    ray_actor_options={"num_gpus": 1} if torch.cuda.is_available() else {"num_cpus": 1},
    graceful_shutdown_timeout_s=60,
    request_router_config=RequestRouterConfig(
        request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",
        request_router_kwargs={
            "num_fallback_replicas": 0
        },  # a busy replica is waited for: only it has the conversation
    ),
).bind()
