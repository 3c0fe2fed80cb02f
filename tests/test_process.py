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
x = np.zeros((100, 2, 8), "float32")  # long enough to give up the interpreter lock: forks meet a call inside
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

FORK_BESIDE_A_CALL = """
import os, threading
import numpy as np, fastrnn
layer, idle = fastrnn.GRU(8, 8, seed=0), fastrnn.GRU(8, 8, seed=0)
stream = fastrnn.GRU(8, 8, seed=0).eval().stream(2)
x = np.ones((5, 2, 8), "float32")
y, _ = layer(x)
expected = idle.backward(idle(x)[0])
idle(x)
inside, done = threading.Event(), threading.Event()
def call():
    with layer._alone(), stream._core:
        inside.set()
        done.wait()
thread = threading.Thread(target=call, daemon=True)
thread.start()
inside.wait()

def refused(work, message):
    try:
        work()
    except RuntimeError as error:
        return message in str(error)

def equal(gradients):
    return all(np.array_equal(one, other) for one, other in zip(gradients, expected))

def is_right_in_the_child():
    yield refused(lambda: layer.backward(y), "forked while another thread was using the layer")
    yield equal(layer.backward(layer(x)[0]))
    yield equal(idle.backward(y))  # nobody was using this one
    layer.eval()
    stream.reset()
    yield np.array_equal(stream.run(x), y)
    with layer._alone(), stream._core:
        yield refused(layer.train, "in use by another thread")
        yield refused(stream.reset, "in use by another thread")

child = os.fork()
if child == 0:
    right = [False]
    try:
        right = list(is_right_in_the_child())
        print(right, flush=True)
    finally:
        os._exit(0 if all(right) else 1)
assert os.waitpid(child, 0)[1] == 0
assert refused(layer.train, "in use by another thread")
assert refused(stream.reset, "in use by another thread")
done.set()
thread.join()
assert equal(layer.backward(y))
stream.reset()
"""


def run(program: str) -> None:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_daemon_threads_inside_a_call_let_the_process_end() -> None:
    run(DAEMON)


def test_fork_while_other_threads_are_inside_calls() -> None:
    run(FORK)


def test_a_child_is_not_kept_out_by_threads_it_does_not_have() -> None:
    run(FORK_BESIDE_A_CALL)
