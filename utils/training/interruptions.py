"""How a training ends before its time: signals, memory, losses that are no numbers, workers that die."""

from contextlib import contextmanager
from pathlib import Path

from utils.config.commands import quote_path
from utils.config.constants import to_plain
from utils.io.errors import UserError
from utils.io.logger import logger
from utils.io.text import either
from utils.runtime.device import FLOAT32
from utils.runtime.distributed import broadcast_object, shut_down
from utils.training.advice import shorten_steps
from utils.training.nonfinite import CRASH_DUMP, NonFiniteLossError, write_crash_dump
from utils.training.preflight import is_out_of_memory, out_of_memory_message


@contextmanager
def interruptions(run_logger, checkpointer, optim, train_loader, settings):
    """Around the epochs of a training: whatever ends them, what was reached is on disk, and the cause is said.

    run_logger: of start_run. checkpointer: a Checkpointer; it knows phase and epoch. optim: an OptimWrapper.
    """
    with checkpointer.signals:
        try:
            yield
            checkpointer.close()
        except KeyboardInterrupt:
            logger.info(f"\nLeft at once. What was saved last is in {checkpointer.path}.")
            run_logger = None  # no last pictures
            raise
        except NonFiniteLossError as error:
            raise explain_nonfinite(error, run_logger, checkpointer, optim, train_loader, settings) from error
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise UserError(out_of_memory_message(settings, checkpointer.phase)) from error
            if sentence := train_loader.worker_error(error):
                raise UserError(sentence) from error
            raise
        finally:
            if run_logger:
                run_logger.close()
            shut_down()


def explain_nonfinite(error, run_logger, checkpointer, optim, train_loader, settings):
    """Write what led to a NonFiniteLossError, and return one that says what it was and what to do."""
    annotations, rank = train_loader.dataset.annotations, optim.runtime.dist.rank
    folder = Path(broadcast_object(str(run_logger.folder)))
    path = folder / (CRASH_DUMP if run_logger.folder else f"black_box_rank{rank}.pth")
    paths = [annotations.path(index) for batch in error.batches for index in batch.indices]
    path = path if folder.is_dir() else None  # another machine may not see the disk of the main one
    cause = write_crash_dump(path, optim, error.batches, paths, to_plain(vars(settings)), checkpointer.epoch)
    changes = shorten_steps(settings, checkpointer.phase)
    if optim.runtime.precision.dtype != FLOAT32.dtype:
        changes.append("rule out mixed precision by fp16 = False")
    return NonFiniteLossError(
        f"{error} In epoch {checkpointer.epoch + 1}, first of all {cause}, with the images {', '.join(paths[:4])}"
        f"{' ...' if len(paths) > 4 else ''}. These steps were left out, so the weights are those before. "
        f"Before you go on with --resume={quote_path(folder)}, {either(changes)}. {path or CRASH_DUMP} holds the batch "
        "for a closer look."
    )
