"""Do calls survive what a process does around them: threads at its end, forks in its middle?"""

import subprocess
import sys

DAEMON = """
import threading, time
import numpy as np, fastrnn
layer = fastrnn.LSTM(64, 128, seed=0).eval()
x = np.zeros((100, 4, 64), "float32")
def work():
    while True:
        layer(x)
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
"""

FORK = """
import os, threading, warnings
import numpy as np, fastrnn
warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads: that is the point here
layer = fastrnn.GRU(8, 8, seed=0).eval()
x = np.zeros((5, 2, 8), "float32")
layer(x)  # what Python imports at the first call is imported before the forks
def work():
    while True:
        layer(x)
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
for _ in range(200):
    child = os.fork()
    if child == 0:
        layer(x)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def run(program: str) -> None:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_daemon_threads_inside_a_call_let_the_process_end() -> None:
    run(DAEMON)


def test_fork_while_other_threads_are_inside_calls() -> None:
    run(FORK)
