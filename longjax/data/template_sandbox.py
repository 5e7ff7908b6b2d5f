"""Chat templates are programs of strangers: a sandbox with bounds.

Jinja's sandbox, set up as transformers does, has no attributes that reach
Python and no files. Beyond that a template ends after SECONDS of CPU time or
with MOST_BYTES of memory.
"""

import contextlib
import datetime
import functools
import json
import os
import pathlib
import resource
import signal
import threading
import time

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from longjax import errors

# Around what is learned: no characters.
OPEN, CLOSE = '\ufdd0', '\ufdd1'
# Llama 3.1's own default. Later templates write today's date, which would make
# other data every day.
DATE = datetime.date(2024, 7, 26)
SECONDS, MOST_BYTES, LARGE = 1, 1 << 30, 1 << 31
CLOCK = threading.local()  # `until`: the thread's CPU time at which it ends
# What writes at any length or loops without a look at the clock.
UNBOUNDED = ('lipsum', 'slice', 'batch', 'wordwrap', 'urlize')
JINJA = os.path.dirname(jinja2.__file__)
SIZE = '/proc/self/statm'  # of this process, in pages; not on a Mac


@functools.lru_cache
def compiled(source: str) -> jinja2.Template:
  """The template of a source; InputError where it is not Jinja."""
  environment = Sandbox(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, jinja2.ext.loopcontrols],
  )
  environment.globals |= dict(
    raise_exception=_refuse, strftime_now=DATE.strftime
  )
  environment.filters['tojson'] = _to_json
  for known in (environment.filters, environment.globals):
    for name in UNBOUNDED:
      known.pop(name, None)
  try:
    with bounded():  # constants are computed here
      return environment.from_string(source)
  except Exception as error:  # also a SyntaxError, of a break outside a loop
    raise errors.InputError(
      f'the chat template is not Jinja: {error}'
    ) from None


class Generation(jinja2.ext.Extension):
  """{% generation %}: its text is learned."""

  tags = {'generation'}  # noqa: RUF012

  def parse(self, parser):
    next(parser.stream)
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    mark = lambda m: jinja2.nodes.Output([jinja2.nodes.TemplateData(m)])
    return [mark(OPEN), *body, mark(CLOSE)]


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
  """That of transformers, within the bounds of `bounded`."""

  intercepted_binops = frozenset(['*', '**'])

  def call_binop(self, context, operator, left, right):
    large = any(isinstance(x, int) and abs(x) > LARGE for x in (left, right))
    if operator == '**' or large:
      _refuse(f'{operator} of large numbers')
    return left * right

  def _parse(self, *source):
    """Adds a look at the clock to loops, macros and call blocks; it has no name
    that a template could change."""
    tree, nodes = super()._parse(*source), jinja2.nodes
    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
      attribute = nodes.EnvironmentAttribute('look_at_clock')
      call = nodes.Output([nodes.Call(attribute, [], [], None, None)])
      node.body.insert(0, call.set_lineno(node.lineno))
      call.set_environment(self)
    return tree

  def look_at_clock(self):
    _look_at_clock()
    return ''


class TooLongError(BaseException):
  """Jinja keeps an Exception to itself while it computes constants."""


def _look_at_clock(_signal=None, frame=None):
  """Raises TooLongError after CLOCK.until.

  Args:
    frame: what a signal has interrupted; where that is not Jinja's work, it may
      be the end of `bounded`, which must not be interrupted.
  """
  late = time.thread_time() > CLOCK.until
  if late and (frame is None or _is_of_jinja(frame)):
    # Again after a while: what is raised inside of a callback of the garbage
    # collector is lost.
    CLOCK.until += SECONDS / 4
    raise TooLongError


def _is_of_jinja(frame) -> bool:
  """Whether a function of Jinja has called what runs."""
  while frame and not frame.f_code.co_filename.startswith(JINJA):
    frame = frame.f_back
  return frame is not None


@contextlib.contextmanager
def bounded():
  """Ends a template that takes long, or fills the memory.

  In another thread than the main one it ends only in a loop of its own: there
  are no signals, and a limit of memory would end the computation beside it.
  """
  CLOCK.until = time.thread_time() + SECONDS
  main = threading.current_thread() is threading.main_thread()
  try:
    with _memory(main), _timer() if main else contextlib.nullcontext():
      try:
        yield
      finally:
        CLOCK.until = float('inf')  # not while the limits are lifted
  except TooLongError:
    raise jinja2.TemplateError(f'it takes more than {SECONDS} s') from None


@contextlib.contextmanager
def _timer():
  """Looks at the clock now and then, also inside of filters."""
  before = signal.signal(signal.SIGPROF, _look_at_clock)
  signal.setitimer(signal.ITIMER_PROF, SECONDS, SECONDS / 20)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _memory(main: bool):
  """At most MOST_BYTES more than the process has."""
  if not (main and os.path.exists(SIZE)):
    yield
    return
  limits = resource.getrlimit(resource.RLIMIT_AS)
  pages = int(pathlib.Path(SIZE).read_text().split()[0])
  most = pages * resource.getpagesize() + MOST_BYTES
  if limits[0] != resource.RLIM_INFINITY:
    most = min(most, limits[0])
  resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, limits)


def _refuse(message):
  raise jinja2.TemplateError(message)


def _to_json(value, ensure_ascii=False, **options) -> str:
  """As transformers has it: Jinja's own escapes what HTML would mistake."""
  return json.dumps(value, ensure_ascii=ensure_ascii, **options)
