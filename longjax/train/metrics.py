"""What a run tells: metrics.jsonl first, TensorBoard and a line from it."""

import contextlib
import json
import math
import os
import pathlib
import time

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from longjax.progress import duration

# Where a metric stands in TensorBoard.
TAGS = dict(
  loss='train/loss',
  grad_norm='train/grad_norm',
  lr='train/lr',
  skipped='train/skipped',
  step_seconds='perf/step_seconds',
  tokens_per_second='perf/tokens_per_second',
  mfu='perf/mfu',
  data_seconds='perf/data_wait_seconds',
  goodput='perf/goodput',
)


class Metrics:
  """The writer of one run directory.

  Nothing that happens to its files ends training.

  Attributes:
    tokens: trained on so far.
    dropped_seconds: of steps that will be run again.
  """

  def __init__(self, workdir, start: int, steps: int, log=print, tokens=0):
    """Lines of steps after `start` are dropped: they will be run again.

    Args:
      workdir: of the run.
      start: the last step that is kept.
      steps: of the whole run.
      log: called with a line a step.
      tokens: of the steps up to `start`; 0 is what their lines say.
    """
    self.path = pathlib.Path(workdir) / 'metrics.jsonl'
    lines = read(workdir)
    kept = [x for x in lines if x['step'] <= start]
    self.steps, self.log = steps, log
    self.tokens = tokens or (kept[-1].get('tokens', 0) if kept else 0)
    self.seconds, self.done = 0.0, 0
    self.dropped_seconds = sum(
      x.get('step_seconds', 0.0) for x in lines if x['step'] > start
    )
    text = ''.join(json.dumps(x) + '\n' for x in kept)
    temporary = self.path.with_suffix('.tmp')
    temporary.write_text(text)
    temporary.replace(self.path)
    self.file, self._waiting = self._open(), b''
    self.board = self._open_board(pathlib.Path(workdir) / 'tb')
    self._event(start + 1, session_log=SessionLog(status=SessionLog.START))

  def step(self, step: int, tokens: int, seconds: float, values: dict):
    """One line a step; `values` are floats or None.

    Args:
      step: counted from 1.
      tokens: of this step.
      seconds: this step took.
      values: loss, grad_norm, lr, ...
    """
    self.tokens += tokens
    self.seconds, self.done = self.seconds + seconds, self.done + 1
    line = dict(
      step=step,
      loss=values['loss'],
      loss_hex=values['loss'].hex(),
      tokens=self.tokens,
      step_seconds=seconds,
      tokens_per_second=tokens / seconds,
    )
    line |= {k: v for k, v in values.items() if k not in line}
    self._write(json.dumps({k: finite(v) for k, v in line.items()}) + '\n')
    told = {TAGS[k]: line[k] for k in TAGS if line.get(k) is not None}
    self._event(step, summary=_summary(told))
    self.log(self.progress(line))

  def progress(self, line: dict) -> str:
    """`step 12/40  loss 3.4123  ...  eta 3m20s`."""
    each = self.seconds / self.done
    parts = [
      f'step {line["step"]}/{self.steps}',
      f'loss {line["loss"]:.4f}',
      f'grad {line["grad_norm"]:.2f}',
      f'lr {line["lr"]:.2e}',
      f'{line["step_seconds"]:.2f} s',
      f'{line["tokens_per_second"]:,.0f} tok/s',
    ]
    if line.get('mfu') is not None:
      parts.append(f'mfu {line["mfu"]:.1%}')
    if line.get('skipped'):
      known = math.isfinite(line['loss']) and math.isfinite(line['grad_norm'])
      why = 'a spike' if known else 'loss or gradient not finite'
      parts.append(f'SKIPPED: {why}')
    left = each * (self.steps - line['step'])
    parts.append(f'eta {duration(left)}')
    return '  '.join(parts)

  def close(self):
    self._write('')
    with contextlib.suppress(OSError):
      self.file.close()
    with contextlib.suppress(Exception):  # what its thread met, see _event
      if self.board is not None:
        self.board.close()

  def _open(self):
    """Unbuffered, so that we know what of a line a full disk has taken."""
    return self.path.open('ab', buffering=0)

  def _write(self, text):
    """Appends a line; to a new file if somebody has moved the old one.

    What a full disk does not take waits for the next line.
    """
    late, self._waiting = self._waiting, self._waiting + text.encode()
    try:
      here = self.path.stat() if self.path.exists() else None
      if not here or not os.path.samestat(here, os.fstat(self.file.fileno())):
        self.file.close()
        self.file = self._open()
      while self._waiting:
        self._waiting = self._waiting[self.file.write(self._waiting) :]
    except OSError as error:
      if not late:
        self.log(
          f'WARNING: {self.path}: {error.strerror}; training goes on, lines '
          'wait until it can be written'
        )

  def _open_board(self, directory):
    """None, and a warning, if TensorBoard's files cannot be written."""
    try:
      return EventFileWriter(str(directory))
    except OSError as error:
      self.log(
        f'WARNING: {directory}: {error.strerror}; nothing for TensorBoard is '
        'written, metrics.jsonl has it all'
      )
      return None

  def _event(self, step, **what):
    if self.board is None:
      return
    try:
      self.board.add_event(Event(wall_time=time.time(), step=step, **what))
    except Exception as error:  # of its thread, whatever that met
      self.log(f'WARNING: TensorBoard: {error}; no more is written for it')
      self.board = None


def evaluated(workdir, step: int, values: dict[str, float]):
  """An evaluation for TensorBoard, as a run of its own, tb/eval: of a
  directory TensorBoard reads one file that grows, and that of Metrics does."""
  directory = pathlib.Path(workdir) / 'tb' / 'eval'
  told = {f'eval/{tag}': value for tag, value in values.items()}
  with contextlib.closing(EventFileWriter(str(directory))) as board:
    board.add_event(
      Event(wall_time=time.time(), step=step, summary=_summary(told))
    )


def _summary(values: dict) -> Summary:
  return Summary(value=[
    Summary.Value(tag=tag, simple_value=x) for tag, x in values.items()
  ])  # fmt: skip


class Silent:
  """The writer of a process that leaves writing to another."""

  dropped_seconds = 0.0

  def __init__(self, tokens=0):
    """Counts only `tokens`, as Metrics does."""
    self.tokens = tokens

  def step(self, step, tokens, seconds, values):
    """Counts."""
    self.tokens += tokens

  def close(self):
    """Does nothing."""


def finite(value):
  """JSON knows neither nan nor inf: they become null."""
  bad = isinstance(value, float) and not math.isfinite(value)
  return None if bad else value


def read(workdir) -> list[dict]:
  """The lines of metrics.jsonl; what a crash cut short or damaged is left."""
  path, lines = pathlib.Path(workdir) / 'metrics.jsonl', []
  text = path.read_bytes().decode(errors='replace') if path.exists() else ''
  for part in text.splitlines():
    with contextlib.suppress(ValueError):
      line = json.loads(part)
      if isinstance(line, dict) and isinstance(line.get('step'), int):
        lines.append(line)
  return lines
