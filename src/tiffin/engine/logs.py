import json


def read_logs(path, stdout=True, stderr=True, **k):
    for l in open(path):
        d = json.loads(l)
        yield d["stream"], d["log"].encode()
