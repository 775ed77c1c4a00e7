"""FastAPI as its documentation advises: an async endpoint, the model in the thread pool, uvicorn with uvloop.

With more than one process: `uvicorn --workers`, each with a model of its own.
"""

import os
import sys

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from models import Model

app = FastAPI()
model = Model(os.environ["JOB"])


@app.post("/predict")
async def predict(request: Request):
    body = await request.body()
    (answer,) = await run_in_threadpool(lambda: model.answers([model.decode(body)]))
    return answer


if __name__ == "__main__":
    port, workers = int(sys.argv[1]), int(sys.argv[2])
    uvicorn.run("fastapi_server:app", port=port, workers=workers, loop="uvloop", http="httptools", access_log=False)
