"""A contender that generates nothing: `python fake_worker.py JSON` keeps to the protocol as the JSON object says.

Keys: seconds (of each request, the last again and again), load_seconds, log (a file that gets a line at each request),
name, first (a line instead of the first), reply (a line instead of each reply), die (exit code, or -1 times a signal,
after as many replies as `replies`, with `stderr` said), stay (ignore the end of stdin), sleep (really, each request).
"""

import json
import os
import sys
import time

settings = json.loads(sys.argv[1])
first = {
    "ready": True,
    "load_seconds": settings.get("load_seconds", 0.5),
    "versions": {"fake": "1", "pid": os.getpid()},
}
if "variable" in settings:
    first["versions"]["variable"] = os.environ.get(settings["variable"], "")
print(settings.get("first", json.dumps(first)), flush=True)
seconds = settings.get("seconds", [1.0])
for done, line in enumerate(sys.stdin):
    if "die" in settings and done >= settings.get("replies", 0):
        print(settings.get("stderr", ""), file=sys.stderr, flush=True)
        if settings["die"] < 0:
            os.kill(os.getpid(), -settings["die"])
        sys.exit(settings["die"])
    request = json.loads(line)
    time.sleep(settings.get("sleep", 0))
    if "log" in settings:
        with open(settings["log"], "a", encoding="utf-8") as log:
            log.write(f"{settings['name']} {request['batch']} {request['seed']}\n")
    answer = {"seconds": seconds[min(done, len(seconds) - 1)], "peak_memory_bytes": 1000 * (done + 1)}
    print(settings.get("reply", json.dumps(answer)), flush=True)
while settings.get("stay"):
    time.sleep(1)
