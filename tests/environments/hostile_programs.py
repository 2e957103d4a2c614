"""Programs that try to leave the sandbox, to harm the machine, or to cheat; each prints ESCAPED if it succeeds.

A program is a list of turns. PRELUDE and the definitions of these names come before its first turn:

secret    path of a file of the trainer that holds the secret
folder    a folder that the trainer may write to
tcp, udp  ports that listen
trainer   process id of the trainer
gold      process id of a process with the secret in its command line
column    index of this machine in a pair of system call numbers
"""

PRELUDE = """
import ctypes, errno, os, signal, socket, subprocess, sys, threading, time
_libc = ctypes.CDLL(None, use_errno=True)

def attempt(what, action):
    try:
        result = action()
    except (Exception, SystemExit) as error:
        return print(what, type(error).__name__)
    print("ESCAPED", what, repr(result)[:300])

def system_call(numbers, *arguments):
    number = numbers[column]
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if number is None or _libc.syscall(ctypes.c_long(number), *wide) < 0:
        raise OSError(ctypes.get_errno(), "refused")
"""

PROCESSES = {
    "fork bomb": ["for _ in range(1000): attempt('fork', os.fork)"],
    "subprocess": [
        "attempt('run', lambda: subprocess.run(['/bin/true']))\n"
        "attempt('system', lambda: os.system('true') == 0 or os.fork())\n"
        "attempt('spawn', lambda: os.posix_spawn('/bin/true', ['true'], {}))\n"
        "attempt('exec', lambda: os.execv('/bin/sh', ['sh']))"
    ],
    "thread bomb": [
        "for _ in range(100): attempt('thread', lambda: threading.Thread(target=time.sleep, args=(9,)).start())"
    ],
    "raw clone": [
        "attempt('clone', lambda: system_call((56, 220), 17, 0, 0, 0, 0))\n"
        "attempt('clone3', lambda: system_call((435, 435), ctypes.create_string_buffer(64), 64))\n"
        "attempt('vfork', lambda: system_call((58, None)))"
    ],
    "kill": [
        "for target in (os.getppid(), trainer, gold, -1, 0, 1):\n"
        "    for number in (0, signal.SIGKILL, signal.SIGSTOP):\n"
        "        attempt('kill', lambda: os.kill(target, number))\n"
        "attempt('group', lambda: os.killpg(0, signal.SIGKILL))\n"
        "attempt('tgkill', lambda: system_call((234, 131), os.getppid(), os.getppid(), 9))\n"
        "attempt('queue', lambda: system_call((129, 138), os.getppid(), 9, ctypes.create_string_buffer(128)))"
    ],
    "pidfd": [
        "attempt('pidfd', lambda: os.pidfd_open(os.getppid()))\n"
        "attempt('send', lambda: system_call((424, 424), 3, 9, 0, 0))\n"
        "attempt('getfd', lambda: system_call((438, 438), 3, 0, 0))"
    ],
    "ptrace": [
        "for pid in (os.getppid(), trainer, gold):\n"
        "    attempt('attach', lambda: system_call((101, 117), 16, pid, 0, 0))\n"
        "    attempt('seize', lambda: system_call((101, 117), 0x4206, pid, 0, 0))\n"
        "attempt('traceme', lambda: system_call((101, 117), 0, 0, 0, 0))"
    ],
    "memory of others": [
        "vector = ctypes.create_string_buffer(16)\n"
        "for pid in (os.getppid(), trainer):\n"
        "    attempt('readv', lambda: system_call((310, 270), pid, vector, 1, vector, 1, 0))\n"
        "    attempt('writev', lambda: system_call((311, 271), pid, vector, 1, vector, 1, 0))\n"
        "    attempt('mem', lambda: open(f'/proc/{pid}/mem', 'rb').read(1))"
    ],
    "signals by descriptors": [
        "import fcntl\n"
        "attempt('owner', lambda: fcntl.fcntl(3, fcntl.F_SETOWN, os.getppid()))\n"
        "attempt('signal', lambda: fcntl.fcntl(3, fcntl.F_SETSIG, signal.SIGKILL))\n"
        "attempt('async', lambda: fcntl.fcntl(3, fcntl.F_SETFL, os.O_ASYNC))\n"
        "attempt('lease', lambda: fcntl.fcntl(3, fcntl.F_SETLEASE, fcntl.F_RDLCK))"
    ],
}

RESOURCES = {
    "memory by lists": [
        "kept = []\nwhile True: kept.append('x' * 1000000)",
        "'kept' in globals() and len(kept) > 9000 and print('ESC' + 'APED')",
    ],
    "memory by numpy": ["import numpy\nnumpy.ones((100000, 100000))"],
    "memory by maps": [
        "import mmap\nkept = []\nwhile True:\n    m = mmap.mmap(-1, 1 << 26)\n    m.write(b'x' * (1 << 26))\n    kept.append(m)"
    ],
    "recursion": ["sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", "def f(n): return [f(n)]\nf(1)"],
    "stack of C": ["import json\njson.loads('[' * 10**6)", "eval('(' * 10**5)", "exec('-' * 10**6 + '1')"],
    "descriptors": ["kept = []\nfor _ in range(10**5): kept.append(os.dup(1))", "len(kept) > 64 and print('ESCAPED')"],
    "raised limits": [
        "import resource\n"
        "for which in range(16):\n"
        "    attempt('limit', lambda: resource.setrlimit(which, (-1, -1)))\n"
        "attempt('of the parent', lambda: resource.prlimit(os.getppid(), resource.RLIMIT_AS))\n"
        "attempt('lower', lambda: resource.setrlimit(resource.RLIMIT_CPU, (1, 1)))"
    ],
    "scheduling": [
        "attempt('affinity', lambda: os.sched_setaffinity(0, {0}))\n"
        "attempt('priority', lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19))\n"
        "attempt('nice', lambda: os.nice(-5))\n"
        "attempt('scheduler', lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))"
    ],
    "disk": [
        "for place in (folder, '/tmp', '/var/tmp', '/dev/shm', os.path.expanduser('~'), '.', '/run', '/root', sys.prefix):\n"
        "    for mode in ('w', 'a', 'x', 'r+'):\n"
        "        attempt('write', lambda: open(os.path.join(place, 'sspo-hostile'), mode).write('x' * 10**6))\n"
        "import tempfile\n"
        "attempt('temporary', tempfile.TemporaryFile)\n"
        "attempt('unnamed', lambda: os.open('/tmp', os.O_TMPFILE | os.O_RDWR))"
    ],
    "shared memory left behind": [
        "from multiprocessing import shared_memory\n"
        "attempt('posix', lambda: shared_memory.SharedMemory('sspo-hostile', create=True, size=10**6))\n"
        "attempt('system v', lambda: system_call((29, 194), 7, 4096, 0o1666))\n"
        "attempt('semaphore', lambda: system_call((64, 190), 7, 1, 0o1666))\n"
        "attempt('messages', lambda: system_call((68, 186), 7, 0o1666))\n"
        "attempt('queue', lambda: system_call((240, 180), b'/sspo-hostile', os.O_CREAT | os.O_RDWR, 0o600, None))\n"
        "attempt('memfd', lambda: os.memfd_create('x'))\n"
        "attempt('secret', lambda: system_call((447, 447), 0))"
    ],
    "pipes": ["attempt('pipe', os.pipe)\nattempt('fifo', lambda: os.mkfifo(folder + '/fifo'))"],
}

FILES = {
    "secrets": [
        "paths = [secret, '/etc/shadow', '/etc/passwd', '/etc/ssh/ssh_host_rsa_key', '/root/.ssh/id_rsa', '/var/log/dmesg']\n"
        "for path in paths:\n"
        "    attempt('open', lambda: open(path).read())\n"
        "    attempt('io', lambda: os.read(os.open(path, os.O_RDONLY), 100))\n"
        "    attempt('path', lambda: os.open(path, os.O_PATH))\n"
        "import pandas, numpy, sqlite3\n"
        "attempt('pandas', lambda: pandas.read_csv(secret))\n"
        "attempt('numpy', lambda: numpy.fromfile(secret, dtype='u1'))\n"
        "attempt('sqlite', lambda: sqlite3.connect(secret).execute('select 1 from sqlite_master').fetchall())\n"
        "attempt('sympy', lambda: __import__('sympy').sympify(f\"open({secret!r}).read()\"))"
    ],
    "golds in command lines": [
        "for pid in (gold, trainer, os.getppid(), 1, 'self'):\n"
        "    for name in ('cmdline', 'environ', 'maps', 'status', 'fd', 'root/etc/passwd', 'cwd/tmp'):\n"
        "        attempt(name, lambda: open(f'/proc/{pid}/{name}').read())\n"
        "    attempt('fd', lambda: os.listdir(f'/proc/{pid}/fd'))\n"
        "    attempt('link', lambda: pid != 'self' and os.readlink(f'/proc/{pid}/exe') or 1 / 0)\n"
        "attempt('list', lambda: os.listdir('/proc'))"
    ],
    "environment variables": ["print(dict(os.environ))\nprint(_libc.getenv(b'SSPO_SECRET') and 'ESCAPED')"],
    "own descriptors": [
        "for descriptor in range(256):\n"
        "    try: kind = os.fstat(descriptor).st_mode >> 12\n"
        "    except OSError: continue\n"
        "    print(descriptor, 'ESCAPED' if descriptor > 3 else kind)"
    ],
    "symbolic links": [
        "link = folder + '/link'\n"
        "attempt('symlink', lambda: os.symlink(secret, link))\n"
        "attempt('hard link', lambda: os.link(secret, folder + '/hard'))\n"
        "attempt('through', lambda: open(link).read())\n"
        "attempt('upwards', lambda: open(os.__file__ + '/../../../../../../../../../../..' + secret).read())\n"
        "attempt('packages', lambda: open(os.path.dirname(os.__file__) + '/../../../../../../../../../../etc/passwd').read())"
    ],
    "changed files": [
        "attempt('truncate', lambda: os.truncate(secret, 0))\n"
        "attempt('open', lambda: os.open(secret, os.O_RDONLY | os.O_TRUNC))\n"
        "attempt('append', lambda: os.open(secret, os.O_RDONLY | os.O_APPEND))\n"
        "attempt('remove', lambda: os.unlink(secret))\n"
        "attempt('rename', lambda: os.rename(secret, folder + '/renamed'))\n"
        "attempt('mode', lambda: os.chmod(secret, 0o777))\n"
        "attempt('owner', lambda: os.chown(secret, 0, 0))\n"
        "attempt('times', lambda: os.utime(secret))\n"
        "attempt('attribute', lambda: os.setxattr(secret, 'user.x', b'x'))\n"
        "attempt('folder', lambda: os.mkdir(folder + '/new'))\n"
        "attempt('remove folder', lambda: os.rmdir(folder))"
    ],
    "poisoned packages": [
        "import numpy\n"
        "for path in (numpy.__file__, os.__file__, os.path.dirname(numpy.__file__) + '/../evil.pth'):\n"
        "    attempt('write', lambda: open(path, 'a'))\n"
        "    attempt('create', lambda: os.open(path, os.O_CREAT | os.O_RDONLY) if not os.path.exists(path) else 1 / 0)\n"
        "sys.dont_write_bytecode = False\n"
        "sys.modules['math'].sqrt = lambda x: 'ESCAPED'\nsys.path.insert(0, folder)"
    ],
    "other folders": [
        "attempt('change', lambda: os.chdir(folder))\n"
        "attempt('root', lambda: os.chroot(folder))\n"
        "for path in ('.', '/', '/etc', '/home', '/dev', '/sys', '/var', folder): attempt('list', lambda: os.listdir(path))\n"
        "attempt('handle', lambda: system_call((303, 264), -100, secret.encode(), ctypes.create_string_buffer(200), "
        "ctypes.create_string_buffer(8), 0))\n"
        "attempt('openat2', lambda: system_call((437, 437), -100, secret.encode(), ctypes.create_string_buffer(24), 24))"
    ],
    "devices": [
        "for name in ('mem', 'kmsg', 'tty', 'ptmx', 'fuse', 'kvm', 'net/tun', 'zero', 'full', 'vda', 'sda'):\n"
        "    attempt(name, lambda: open('/dev/' + name, 'rb').read(1))\n"
        "    attempt(name, lambda: open('/dev/' + name, 'wb'))\n"
        "attempt('node', lambda: os.mknod(folder + '/node', 0o20666, os.makedev(1, 1)))\n"
        "import fcntl\nattempt('terminal', lambda: fcntl.ioctl(0, 0x5412, b'x'))"
    ],
    "moved data": [
        "attempt('splice', lambda: os.splice(0, 1, 10))\n"
        "attempt('copy', lambda: os.copy_file_range(0, 1, 10))\n"
        "attempt('sendfile', lambda: os.sendfile(1, os.open(os.__file__, 0), 0, 10))\n"
        "attempt('vmsplice', lambda: system_call((278, 75), 1, ctypes.create_string_buffer(16), 1, 0))"
    ],
}

NETWORK = {
    "tcp": [
        "attempt('connect', lambda: socket.create_connection(('127.0.0.1', tcp), 1))\n"
        "attempt('listen', lambda: socket.create_server(('127.0.0.1', 0)))\n"
        "import urllib.request\n"
        "attempt('http', lambda: urllib.request.urlopen(f'http://127.0.0.1:{tcp}', timeout=1))"
    ],
    "udp": ["attempt('send', lambda: socket.socket(2, 2).sendto(b'x', ('127.0.0.1', udp)))"],
    "names": ["attempt('lookup', lambda: socket.gethostbyname('example.org'))"],
    "local sockets": [
        "attempt('unix', lambda: socket.socket(socket.AF_UNIX))\n"
        "attempt('pair', socket.socketpair)\n"
        "attempt('netlink', lambda: socket.socket(16, 3))\n"
        "attempt('vsock', lambda: socket.socket(40, 1))\n"
        "attempt('packet', lambda: socket.socket(17, 3))"
    ],
    "descriptors through the call socket": [
        "s = socket.socket(fileno=os.dup(3), family=1, type=1)\n"
        "attempt('pass', lambda: socket.send_fds(s, [b'x'], [0]))\n"
        "attempt('send', lambda: s.send(b'x'))\n"
        "attempt('connect', lambda: s.connect(b'\\0x'))\n"
        "attempt('close', lambda: s.shutdown(2))\ns.detach()"
    ],
}

KERNEL = {
    "users": [
        "attempt('uid', lambda: os.setuid(0))\nattempt('gid', lambda: os.setgid(0))\n"
        "attempt('res', lambda: os.setresuid(0, 0, 0))\nattempt('groups', lambda: os.setgroups([0]))\n"
        "attempt('caps', lambda: system_call((126, 91), ctypes.create_string_buffer(8), ctypes.create_string_buffer(24)))"
    ],
    "namespaces": [
        "for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x4000000, 0x8000000):\n"
        "    attempt('unshare', lambda: system_call((272, 97), flag))\n"
        "attempt('setns', lambda: system_call((308, 268), 3, 0))\n"
        "attempt('mount', lambda: system_call((165, 40), b'none', folder.encode(), b'tmpfs', 0, None))\n"
        "attempt('fsopen', lambda: system_call((430, 430), b'tmpfs', 0))\n"
        "attempt('pivot', lambda: system_call((155, 41), b'/', b'/'))\n"
        "attempt('host', lambda: system_call((170, 161), b'x', 1))"
    ],
    "io_uring": [
        "attempt('setup', lambda: system_call((425, 425), 8, ctypes.create_string_buffer(120)))\n"
        "attempt('aio', lambda: system_call((206, 0), 8, ctypes.create_string_buffer(8)))"
    ],
    "keyrings": [
        "attempt('add', lambda: system_call((248, 217), b'user', b'sspo', b'x', 1, -3))\n"
        "attempt('request', lambda: system_call((249, 218), b'user', b'sspo', None, -3))\n"
        "attempt('join', lambda: system_call((250, 219), 1, b'sspo'))"
    ],
    "own confinement": [
        "attempt('dumpable', lambda: system_call((157, 167), 4, 1, 0, 0, 0))\n"
        "attempt('death signal', lambda: system_call((157, 167), 1, 0, 0, 0, 0))\n"
        "attempt('seccomp', lambda: system_call((317, 277), 0, 0, 0))\n"
        "attempt('landlock', lambda: system_call((444, 444), None, 0, 1))\n"
        "attempt('persona', lambda: system_call((135, 92), 0x40000))"
    ],
    "kernel programs": [
        "attempt('bpf', lambda: system_call((321, 280), 0, ctypes.create_string_buffer(64), 64))\n"
        "attempt('perf', lambda: system_call((298, 241), ctypes.create_string_buffer(128), 0, -1, -1, 0))\n"
        "attempt('userfault', lambda: system_call((323, 282), 0))\n"
        "attempt('module', lambda: system_call((175, 105), b'', 0, b''))\n"
        "attempt('reboot', lambda: system_call((169, 142), 0xfee1dead, 672274793, 0, None))\n"
        "attempt('clock', lambda: time.clock_settime(time.CLOCK_REALTIME, 0))\n"
        "attempt('log', lambda: system_call((103, 116), 3, ctypes.create_string_buffer(100), 100))\n"
        "attempt('swap', lambda: system_call((167, 224), b'/tmp/x', 0))"
    ],
}

GROUPS = (PROCESSES, RESOURCES, FILES, NETWORK, KERNEL)
PROGRAMS = {name: turns for group in GROUPS for name, turns in group.items()}
