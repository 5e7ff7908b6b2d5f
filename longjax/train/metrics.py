"""Writes metrics.jsonl, and from it TensorBoard and a log line.

The columns are computed in loop.usage and optimizer.update, those of time and
the loss in hex in `Metrics.step`; TAGS names those that TensorBoard shows.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import json
import math
import pathlib
import time
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # pyright: ignore
from tensorboard.compat.proto.tensor_pb2 import TensorProto  # pyright: ignore
from tensorboard.compat.proto.types_pb2 import DT_STRING as STRING  # pyright: ignore
from tensorboard.summary.writer import event_file_writer

from longjax import storage
from longjax.errors import InputError
from longjax.progress import duration

# The column of metrics.jsonl: its tag in TensorBoard.
TAGS = dict(
  loss='train/loss',
  grad_norm='train/grad_norm',
  lr='train/lr',
  skipped='train/skipped',
  empty='train/empty',
  step_seconds='perf/step_seconds',
  tokens_per_second='perf/tokens_per_second',
  mfu='perf/mfu',
  data_seconds='perf/data_wait_seconds',
  goodput='perf/goodput',
  memory='perf/memory_bytes',
)


class Metrics:
  """Writes the metrics of a run; a failure to write never ends training.

  Attributes:
    dropped_seconds: of steps that will be run again.
  """

  def __init__(self, workdir, start: int, steps: int, log=print):
    """Drops the lines of steps after `start`, which will be run again.

    Args:
      workdir: local directory of the run.
      start: the last step that is kept.
      steps: of the whole run.
      log: called with a line per step.
    """
    self.path = pathlib.Path(workdir) / 'metrics.jsonl'
    lines = read(workdir)
    kept = [x for x in lines if x['step'] <= start]
    self.steps, self.log = steps, log
    self.seconds, self.done = 0.0, 0
    self.dropped_seconds = sum(
      x.get('step_seconds', 0.0) for x in lines if x['step'] > start
    )
    text = ''.join(json.dumps(x) + '\n' for x in kept)
    storage.write_text(self.path, text)
    self._unwritten = b''
    self.board = self._open_board(pathlib.Path(workdir) / 'tb')
    self._event(start + 1, session_log=SessionLog(status=SessionLog.START))

  def step(self, step: int, tokens: int, seconds: float, values: dict):
    """Writes a line.

    Args:
      step: counted from 1.
      tokens: of this step.
      seconds: of this step.
      values: floats or None: loss, grad_norm, lr, ...; `tokens` of all steps.
    """
    self.seconds, self.done = self.seconds + seconds, self.done + 1
    line = dict(
      step=step,
      loss=values['loss'],
      loss_hex=values['loss'].hex(),
      tokens=values['tokens'],
      step_seconds=seconds,
      tokens_per_second=tokens / seconds,
    )
    line |= {k: v for k, v in values.items() if k not in line}
    self._write(json.dumps({k: finite(v) for k, v in line.items()}) + '\n')
    tagged = {TAGS[k]: line[k] for k in TAGS if line.get(k) is not None}
    self._event(step, summary=_summary(tagged))
    self.log(self.progress(line))

  def text(self, tag: str, content: str, step: int):
    """Shows a text in TensorBoard, as it is."""
    metadata = SummaryMetadata(
      plugin_data=SummaryMetadata.PluginData(plugin_name='text')
    )
    lines = '\n'.join(f'    {line}' for line in content.splitlines())
    value = TensorProto(dtype=STRING, string_val=[lines.encode()])
    self._event(step, summary=Summary(value=[
      Summary.Value(tag=tag, metadata=metadata, tensor=value)
    ]))  # fmt: skip

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
      if line.get('empty'):
        why = 'its loss weights sum to 0'
      parts.append(f'SKIPPED: {why}')
    left = each * (self.steps - line['step'])
    parts.append(f'eta {duration(left)}')
    return '  '.join(parts)

  def close(self):
    self._write('')
    with contextlib.suppress(Exception):  # of its thread, see _event
      if self.board is not None:
        self.board.close()

  def _write(self, text):
    """Appends a line; what a full disk does not take waits for the next.

    The file is opened each time, unbuffered: it may have been moved away, and
    we know how much of a line was written.
    """
    failed_before = bool(self._unwritten)
    self._unwritten += text.encode()
    try:
      with self.path.open('ab', buffering=0) as file:
        while self._unwritten:
          self._unwritten = self._unwritten[file.write(self._unwritten) :]
    except OSError as error:
      if not failed_before:
        self.log(
          f'WARNING: {self.path}: {error.strerror}; training continues, lines '
          'wait until it can be written'
        )

  def _open_board(self, directory):
    """The writer for TensorBoard; None, and a warning, if it cannot write."""
    try:
      return event_file_writer.EventFileWriter(str(directory))
    except OSError as error:
      self.log(
        f'WARNING: {directory}: {error.strerror}; nothing for TensorBoard is '
        'written, metrics.jsonl has everything'
      )
      return None

  def _event(self, step, **content):
    if self.board is None:
      return
    try:
      self.board.add_event(Event(wall_time=time.time(), step=step, **content))
    except Exception as error:  # of its thread, whatever that raised
      self.log(f'WARNING: TensorBoard: {error}; nothing more is written for it')
      self.board = None


def write_evaluation(workdir, step: int, values: dict[str, float]):
  """Writes an evaluation for TensorBoard, as a run of its own in tb/eval:
  TensorBoard follows one growing file a directory, and Metrics has one."""
  directory = pathlib.Path(workdir) / 'tb' / 'eval'
  tagged = {f'eval/{tag}': value for tag, value in values.items()}
  with contextlib.closing(
    event_file_writer.EventFileWriter(str(directory))
  ) as board:
    board.add_event(
      Event(wall_time=time.time(), step=step, summary=_summary(tagged))
    )


def check(config):
  """InputError if a config asks for what is not installed."""
  if config.metrics.wandb and not importlib.util.find_spec('wandb'):
    raise InputError(
      f'config.metrics.wandb is {config.metrics.wandb!r}, but wandb is not '
      'installed: pip install wandb'
    )


@contextlib.contextmanager
def weights_and_biases(project: str, config, workdir, local, log=print):
  """Copies what is written for TensorBoard to Weights & Biases meanwhile.

  A run that resumes continues there; WANDB_MODE=offline writes to
  local/wandb. A failure is a warning: it never ends training.

  Args:
    project: '' does nothing.
    config: of the run.
    workdir: the run directory, which identifies the run.
    local: where its files are written.
    log: called with a line.
  """
  if not project:
    yield
    return
  wandb: Any = importlib.import_module('wandb')  # an extra

  run = None
  try:
    run = wandb.init(
      project=project, name=config.name, dir=str(local), resume='allow',
      id=hashlib.sha256(str(workdir).encode()).hexdigest()[:16],
      config=config.to_dict(), sync_tensorboard=True,
    )  # fmt: skip
  except Exception as error:  # no key, no network, whatever wandb raises
    text = ' '.join(str(error).split())
    log(f'WARNING: nothing is sent to Weights & Biases: {text}')
  try:
    yield
  finally:
    if run is not None:
      with contextlib.suppress(Exception):
        run.finish()
      wandb.tensorboard.unpatch()


def _summary(values: dict) -> Summary:
  return Summary(value=[
    Summary.Value(tag=tag, simple_value=x) for tag, x in values.items()
  ])  # fmt: skip


def finite(value):
  """None for nan and inf, which JSON has not."""
  bad = isinstance(value, float) and not math.isfinite(value)
  return None if bad else value


def read(workdir) -> list[dict]:
  """The lines of metrics.jsonl, without those that a crash cut short."""
  path, lines = pathlib.Path(workdir) / 'metrics.jsonl', []
  text = path.read_bytes().decode(errors='replace') if path.exists() else ''
  for part in text.splitlines():
    with contextlib.suppress(ValueError):
      line = json.loads(part)
      if isinstance(line, dict) and isinstance(line.get('step'), int):
        lines.append(line)
  return lines
