"""`blip2cap caption`."""

from __future__ import annotations

from typing import Annotated

from blip2cap.cli import arguments as arg
from blip2cap.cli.guard import handle_errors
from blip2cap.cli.run import ReportOptions, start
from blip2cap.jobs.job import Job
from blip2cap.options import (
    BatchOptions,
    DecodeOptions,
    GenerateOptions,
    ModelOptions,
    OutputOptions,
    SourceOptions,
    TextOptions,
)
from blip2cap.tasks.caption import Caption

_DECODE, _MODEL, _GENERATE = DecodeOptions(), ModelOptions(), GenerateOptions()


@handle_errors
def caption(
    inputs: arg.Inputs = None,
    files_from: arg.FilesFrom = None,
    null: arg.NullSeparated = False,
    include: arg.Include = None,
    exclude: arg.Exclude = None,
    image_column: arg.ImageColumn = None,
    allow_http: arg.AllowHttp = _DECODE.allow_http,
    out: arg.Out = "captions.jsonl",
    model: arg.Model = _MODEL.name,
    revision: arg.Revision = _MODEL.revision,
    prompt: Annotated[
        str | None,
        arg.option(
            "--prompt",
            metavar="TEXT",
            help='What the model goes on from, as "a photo of"; may hold {stem} {folder} {file_name}.',
        ),
    ] = None,
    dtype: arg.Dtype = _MODEL.dtype,
    device: arg.Device = _MODEL.device,
    device_map: arg.DeviceMap = _MODEL.device_map,
    quantize: arg.Quantize = _MODEL.quantize,
    batch_size: arg.BatchSize = None,
    decode: arg.Decode = _DECODE.mode,
    threads: arg.Threads = _DECODE.num_threads,
    timeout: arg.Timeout = _DECODE.timeout_s,
    isolate: arg.Isolate = _DECODE.isolate,
    max_new_tokens: arg.MaxNewTokens = _GENERATE.max_new_tokens,
    min_new_tokens: arg.MinNewTokens = _GENERATE.min_new_tokens,
    num_beams: arg.NumBeams = _GENERATE.num_beams,
    temperature: arg.Temperature = _GENERATE.temperature,
    top_p: arg.TopP = _GENERATE.top_p,
    top_k: arg.TopK = _GENERATE.top_k,
    repetition_penalty: arg.RepetitionPenalty = _GENERATE.repetition_penalty,
    no_repeat_ngram_size: arg.NoRepeatNgramSize = _GENERATE.no_repeat_ngram_size,
    length_penalty: arg.LengthPenalty = _GENERATE.length_penalty,
    num_captions: Annotated[
        int, arg.option("--num-captions", help="Captions for each image, in the column `texts`.")
    ] = _GENERATE.num_captions,
    seed: arg.Seed = _GENERATE.seed,
    loop_guard: arg.LoopGuard = False,
    trim_sentence: arg.TrimSentence = False,
    strip: arg.Strip = None,
    limit: arg.Limit = None,
    part_size: arg.PartSize = None,
    shard: arg.Shard = None,
    overwrite: arg.Overwrite = False,
    retry_failed: arg.RetryFailed = False,
    dry_run: arg.DryRun = False,
    config: arg.Config = None,
    quiet: arg.Quiet = False,
    verbose: arg.Verbose = False,
    as_json: arg.AsJson = False,
) -> None:
    """Write a caption for every image."""
    report = ReportOptions(quiet=quiet, verbose=verbose, as_json=as_json)
    job = Job(
        task=Caption(
            template=prompt,
            generate=GenerateOptions(
                max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens,
                num_beams=num_beams,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                repetition_penalty=repetition_penalty,
                no_repeat_ngram_size=no_repeat_ngram_size,
                length_penalty=length_penalty,
                num_captions=num_captions,
                seed=seed,
            ),
            text=TextOptions(loop_guard=loop_guard, trim_sentence=trim_sentence, strip=tuple(strip or ())),
        ),
        source=SourceOptions(
            inputs=tuple(inputs or ()),
            files_from=tuple(files_from or ()),
            null_separated=null,
            limit=limit,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            image_column=image_column,
        ),
        decode=DecodeOptions(
            mode=decode, num_threads=threads, timeout_s=timeout, isolate=isolate, allow_http=allow_http
        ),
        model=ModelOptions(
            name=model, revision=revision, dtype=dtype, device=device, device_map=device_map, quantize=quantize
        ),
        batch=BatchOptions(batch_size=batch_size),
        output=OutputOptions(out=out, overwrite=overwrite, retry_failed=retry_failed, part_size=part_size, shard=shard),
    )
    start(job, report, dry_run=dry_run)
