"""Plain FastAPI on uvicorn, one process: the handler and nothing else."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[str]


class Request(BaseModel):
    inputs: list[Tensor]


class Reply(BaseModel):
    outputs: list[Tensor]


app = FastAPI()


@app.post("/infer")
async def infer(request: Request) -> Reply:
    return Reply(outputs=[Tensor(name="out", shape=[1], datatype="BYTES", data=["ok"])])


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")
