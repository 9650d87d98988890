"""The speech server on several replicas behind Ray Serve; a conversation stays with the replica that began it.

    pip install "ray[serve]" mmh3
    CSM_MODEL=runs/quickstart/export serve run examples.ray_serve:app

Each replica is a whole server with its model, as `csm serve` runs it. Clients send the same `x-session-id` with all
requests of a conversation: Ray hashes it to a replica. Requests without it go anywhere. Voices and conversations are
kept below `CSM_DATA` in a folder for each replica, and a new replica begins with an empty one.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI
from ray import serve
from ray.serve.config import RequestRouterConfig

from csm import load_generator
from csm.serving.app import create_app
from csm.serving.marks import Marking
from csm.serving.service import Service
from csm.serving.settings import Settings
from csm.watermark import load_watermark

DEVICE = os.environ.get("CSM_DEVICE", "cpu")


def build_app() -> FastAPI:
    """The application of one replica, which takes requests once its model is loaded."""
    model, mark = os.environ["CSM_MODEL"], load_watermark("auto")
    replica = serve.get_replica_context().replica_id.unique_id
    settings = Settings(
        names=(Path(model).resolve().name,),
        data=Path(os.environ.get("CSM_DATA", "serve-data")).resolve() / replica,
        api_key=os.environ.get("CSM_API_KEY"),
    )
    generator = load_generator(model, DEVICE, slots=4, watermark="none")  # responses are marked by the routes
    return create_app(Service(lambda: generator, settings, Marking(mark.name, mark.stream)))


app = serve.deployment(
    serve.ingress(build_app)(),
    name="speech",
    num_replicas=2,
    max_ongoing_requests=64,  # the server itself queues, and refuses with 429
    ray_actor_options={"num_gpus": 1} if DEVICE == "cuda" else {"num_cpus": 1},
    request_router_config=RequestRouterConfig(
        request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",
        request_router_kwargs={"num_fallback_replicas": 0},  # another replica does not know the conversation
    ),
).bind()
