import json


def read_logs(path, stdout=True, stderr=True, **k):
    with open(path) as f:
        lines = f.read().splitlines()
    for l in lines:
        d = json.loads(l)
        yield d["stream"], d["log"].encode()
