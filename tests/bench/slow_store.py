"""A directory that answers as slowly as a bucket does, for a child process."""

import pathlib
import subprocess

# Each call that opens a file below LONGJAX_SLOW, or reads one at an offset,
# waits as a request to a bucket does, also in threads of TensorStore.
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define FILES 65536
static char slow[FILES];

static void pause_once(void) {
  const char *text = getenv("LONGJAX_SLOW_MICROSECONDS");
  if (text) usleep(atoi(text));
}

static int is_slow(const char *path) {
  const char *place = getenv("LONGJAX_SLOW");
  return place && path && strncmp(path, place, strlen(place)) == 0;
}

static int note(int fd, int is) {
  if (fd >= 0 && fd < FILES) slow[fd] = is;
  return fd;
}

#define OPEN(name)                                                   \
  int name(const char *path, int flags, ...) {                       \
    static int (*real)(const char *, int, ...);                      \
    if (!real) real = dlsym(RTLD_NEXT, #name);                       \
    va_list rest; va_start(rest, flags);                             \
    int mode = va_arg(rest, int); va_end(rest);                      \
    int is = is_slow(path);                                          \
    if (is) pause_once();                                            \
    return note(real(path, flags, mode), is);                        \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                 \
  int name(int at, const char *path, int flags, ...) {               \
    static int (*real)(int, const char *, int, ...);                 \
    if (!real) real = dlsym(RTLD_NEXT, #name);                       \
    va_list rest; va_start(rest, flags);                             \
    int mode = va_arg(rest, int); va_end(rest);                      \
    int is = is_slow(path) || (path && path[0] != '/' && at >= 0 &&  \
                               at < FILES && slow[at]);              \
    if (is) pause_once();                                            \
    return note(real(at, path, flags, mode), is);                    \
  }
OPENAT(openat)
OPENAT(openat64)

#define PREAD(name, offset)                                          \
  ssize_t name(int fd, void *to, size_t count, offset at) {          \
    static ssize_t (*real)(int, void *, size_t, offset);             \
    if (!real) real = dlsym(RTLD_NEXT, #name);                       \
    if (fd >= 0 && fd < FILES && slow[fd]) pause_once();             \
    return real(fd, to, count, at);                                  \
  }
PREAD(pread, off_t)
PREAD(pread64, off64_t)
"""


def environment(build, directory, milliseconds: float) -> dict[str, str]:
  """Variables with which a process finds a directory slow.

  Args:
    build: a directory for the compiled library; needs `cc`.
    directory: the slow one.
    milliseconds: that each open and each read at an offset waits.
  """
  source = pathlib.Path(build) / 'slow.c'
  library = source.with_suffix('.so')
  source.write_text(SOURCE)
  subprocess.run(
    ['cc', '-shared', '-fPIC', '-O2', '-o', library, source, '-ldl'], check=True
  )
  return dict(
    LD_PRELOAD=str(library),
    LONGJAX_SLOW=str(directory),
    LONGJAX_SLOW_MICROSECONDS=str(round(1000 * milliseconds)),
  )
