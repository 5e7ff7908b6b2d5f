"""What a compiled step needs of a device's memory, and whether that fits.

Read by the planner and at the start of a run.
"""

import re

from longjax.errors import InputError
from longjax.slices import GIB, Chip


def out_of_memory(error, chip: Chip) -> dict:
  """What the compiler needs, from its message; else InputError."""
  text = ' '.join(str(error).split())
  found = re.search(r'HLO temporaries \(([\d.]+)([KMG])\)', text)
  found = found or re.search(r'Used ([\d.]+)([KMG]) of [\d.]+\w hbm', text)
  if 'RESOURCE_EXHAUSTED' not in text or not found:
    raise InputError(f'the TPU compiler refuses the step: {text[:400]}')
  needed = float(found[1]) / dict(K=2**20, M=2**10, G=1)[found[2]]
  return dict(needed_gib=needed, limit_gib=chip.hbm / GIB, message=text[:300])


def memory(stats, chip: Chip) -> dict:
  """HBM of a device in GiB, as the compiler lays it out.

  Args:
    stats: `compiled.memory_analysis()`.
    chip: one device.

  Returns:
    Parts; `peak_gib`, their sum; the compiler's `limit_gib`; of that
    `usable_gib`, see `fits`; and `spare_share`.
  """
  sizes = dict(
    arguments=stats.argument_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
    code=stats.generated_code_size_in_bytes,
  )
  peak = sum(sizes.values())
  return {f'{k}_gib': v / GIB for k, v in sizes.items()} | dict(
    host_temporaries_gib=stats.host_temp_size_in_bytes / GIB,
    peak_gib=peak / GIB,
    limit_gib=chip.hbm / GIB,
    usable_gib=chip.usable / GIB,
    spare_share=1 - peak / chip.hbm,
  )


def fits(peak_gib: float, chip: Chip) -> bool:
  """Whether a step leaves the share slices.HBM_MARGIN of HBM free."""
  return peak_gib * GIB <= chip.usable
