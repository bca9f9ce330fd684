"""Runs a command so that nothing of it outlives the test process.

keeper.py DIRECTORY COMMAND...: prints the command's pid, then sends it the signals named on standard input, one a line.
When the command ends, every process it left behind is killed, and the keeper ends the way the command did.
When standard input ends, whoever asked for the command is gone: everything is killed and DIRECTORY is removed.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading

PR_SET_CHILD_SUBREAPER = 36


def obey(command, abandoned):
    for order in sys.stdin:
        command.send_signal(signal.Signals[order.strip()])
    abandoned.set()
    command.kill()


def children():
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat:
                parent = stat.read().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == os.getpid():
            yield int(entry)


def kill_descendants():
    """Orphans are handed to the subreaper: killing one generation makes the next one ours."""
    try:
        while True:
            for pid in children():
                os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass


def main():
    directory, *command_line = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    command = subprocess.Popen(command_line, cwd=directory, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    print(command.pid, flush=True)
    abandoned = threading.Event()
    threading.Thread(target=obey, args=(command, abandoned), daemon=True).start()
    status = command.wait()
    kill_descendants()
    if abandoned.is_set():
        shutil.rmtree(directory, ignore_errors=True)
    if status < 0:
        os.kill(os.getpid(), -status)
    os._exit(status)


main()
