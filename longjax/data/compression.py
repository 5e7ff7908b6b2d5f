"""Compressed files and archives: damage, and a bound on what they hold."""

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

from longjax.errors import InputError

COMPRESSIONS = {  # ending: package
  '.gz': None, '.bz2': None, '.xz': None, '.zst': 'pyarrow',
  '.zstd': 'pyarrow',
}  # fmt: skip
OPENERS = {'.gz': gzip.open, '.bz2': bz2.open, '.xz': lzma.open}
# A compressed file may hold so many times its bytes, or so many bytes.
EXPANDED, EXPANDED_BYTES = 200, 1 << 28


@contextlib.contextmanager
def opened(file, ending: str):
  """A file of compressed bytes, opened to read what they hold.

  Args:
    file: opened to read bytes.
    ending: of COMPRESSIONS; '' gives the file itself.
  """
  if not ending:
    yield file
    return
  length = sys.maxsize  # where it cannot tell
  if file.seekable():
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
  most = limit(length)
  if ending in OPENERS:
    inner = OPENERS[ending](file)
  else:
    import pyarrow  # pyright: ignore

    inner = pyarrow.input_stream(file, 'zstd')
  with inner, io.BufferedReader(Bounded(inner, most)) as bounded:
    yield bounded


@contextlib.contextmanager
def reading_archive(name) -> Iterator[None]:
  """Inside, what Python's readers raise is an InputError that names an archive:
  it is damaged or encrypted, or has what they do not read."""
  try:
    yield
  except (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError,
    UnicodeError, RuntimeError, OSError,
  ) as error:  # fmt: skip
    # A BadGzipFile has no errno; a damaged offset is an invalid argument.
    if getattr(error, 'errno', None) not in (None, errno.EINVAL):
      raise
    raise InputError(
      f'{name}: not a whole zip or tar archive, or encrypted ({error})'
    ) from None


def limit(length: int) -> int:
  """Bytes that so many compressed bytes may hold."""
  return max(EXPANDED_BYTES, EXPANDED * length)


class Bounded(io.RawIOBase):
  """A few bytes that decompress to many gigabytes fill no memory."""

  def __init__(self, inner, limit: int):
    self.inner, self.limit, self.count = inner, limit, 0

  def readable(self):
    return True

  def seekable(self):
    return self.inner.seekable()

  def seek(self, offset, whence=io.SEEK_SET):
    self.count = self.inner.seek(offset, whence)
    return self.count

  def readinto(self, buffer):
    data = self.inner.read(len(buffer))
    self.count += len(data)
    if self.count > self.limit:
      raise ValueError(
        f'decompresses to more than {self.limit:,} bytes, {EXPANDED} times its '
        'size, as no text does'
      )
    buffer[: len(data)] = data
    return len(data)
