#!/usr/bin/env python3
"""Compares what TensorBoard's and wandb's own readers find in a run with its metrics.jsonl.

check.py RUN [tensorboard] [wandb] [killed] [names=NAMES]
check.py RUN record

killed: a run that was killed and has not gone on. It has no end, and of its last step something may
be missing. Prints how much was compared; any difference is an error. record: what W&B is told about
the run itself, a line a field.
"""
import collections
import glob
import json
import math
import os
import sys

import numpy

KNOWN = {
    "megatron": {("", "loss"): ("lm loss", 1), ("", "lr"): ("learning-rate", 1),
                 ("", "grad_norm"): ("grad-norm", 1), ("", "step_s"): ("iteration-time", 1),
                 ("", "tflops"): ("throughput", 1), ("", "batch_size"): ("batch-size", 1),
                 ("", "loss_scale"): ("loss-scale", 1),
                 ("valid", "loss"): ("lm loss validation", 1),
                 ("valid", "perplexity"): ("lm loss validation ppl", 1)},
    "torchtitan": {("", "loss"): ("loss_metrics/global_avg_loss", 1), ("", "lr"): ("lr", 1),
                   ("", "grad_norm"): ("grad_norm", 1), ("", "tflops"): ("tflops", 1),
                   ("", "tokens_per_s_gpu"): ("throughput(tps)", 1), ("", "mfu"): ("mfu(%)", 100),
                   ("", "step_s"): ("time_metrics/end_to_end(s)", 1),
                   ("", "data_wait_s"): ("time_metrics/data_loading(s)", 1),
                   ("", "tokens"): ("n_tokens_seen", 1),
                   ("valid", "loss"): ("validation_metrics/loss", 1)},
    "mtllm": {},
}
GROUPS = {"train": "loss loss_outlier lr grad_norm grad_norm_outlier loss_scale skipped nonfinite",
          "data": "batch_size tokens samples", "mem": "memory_gib"}
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}


def name_of(evaluation, metric, names):
    known = KNOWN[names].get(("valid" if evaluation else "", metric))
    if known:
        name, scale = known
        return name if evaluation in ("", "valid") else f"{name} {evaluation}", scale
    if evaluation:
        return f"val/{evaluation}/{metric}", 1
    return f"{GROUP_OF.get(metric, 'perf')}/{metric}", 1


def number(value):
    return math.nan if value is None else value


def rows_of(run, names):
    """(step, name) -> (value, time), and the steps that were trained, by their order."""
    expected, steps = {}, []
    with open(os.path.join(run, "metrics.jsonl")) as lines:
        for line in lines:
            row = json.loads(line)
            evaluation = row.pop("eval", "")
            step, time = row.pop("step"), row.pop("time")
            if not evaluation:
                steps.append(step)
            for dataset, seen in row.pop("datasets", {}).items():
                for metric, value in seen.items():
                    expected[step, f"data/{dataset.lstrip('/')}/{metric}"] = value, time
            for metric, value in row.items():
                if evaluation and GROUP_OF.get(metric) == "data":
                    continue
                name, scale = name_of(evaluation, metric, names)
                assert (step, name) not in expected, f"metrics.jsonl has {name} of {step} twice"
                expected[step, name] = number(value) * scale, time
    assert steps == list(range(1, len(steps) + 1)), f"metrics.jsonl has the steps {steps}"
    return expected, steps


def same(one, other):
    return one == other or (math.isnan(one) and math.isnan(other))


def compare(found, expected, convert, what, with_time=True):
    assert found.keys() == expected.keys(), (
        f"{what}: missing {sorted(expected.keys() - found.keys())[:9]}, "
        f"too many {sorted(found.keys() - expected.keys())[:9]}")
    for key, (value, time) in expected.items():
        assert same(found[key][0], convert(value)), f"{what}: {key}: {found[key][0]}, not {value}"
        assert not with_time or found[key][1] == time, f"{what}: {key}: at {found[key][1]}"
    print(f"{what}: {len(found)} values")


def check_tensorboard(run, names, killed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    directory = os.path.join(run, "tensorboard")
    files = sorted(glob.glob(os.path.join(directory, "*")))
    expected, steps = rows_of(run, names)
    found = {}
    for file in files:
        assert "tfevents" in os.path.basename(file), f"{file} is left over"
        for event in EventFileLoader(file).Load():
            for value in event.summary.value:
                # The loader turns what simple_value had into a tensor.
                if value.metadata.plugin_data.plugin_name != "scalars":
                    continue
                key = event.step, value.tag
                assert key not in found, f"{file}: {key} is there twice"
                found[key] = value.tensor.float_val[0], event.wall_time
    single = lambda value: float(numpy.float32(value))
    if killed:
        expected = {key: value for key, value in expected.items()
                    if key[0] < steps[-1] or key in found}
    compare(found, expected, single, "event files")

    accumulator = EventAccumulator(directory, size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    found = {(event.step, tag): (event.value, event.wall_time)
             for tag in tags["scalars"] for event in accumulator.Scalars(tag)}
    if not found:  # newer loaders keep scalars as tensors
        found = {(event.step, tag): (event.tensor_proto.float_val[0], event.wall_time)
                 for tag in tags["tensors"] if tag.split("/")[-1] != "text_summary"
                 and not tag.startswith("_hparams_") for event in accumulator.Tensors(tag)}
    compare(found, expected, single, "TensorBoard")
    text = accumulator.Tensors("settings/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "    steps = " in text, text
    check_hparams(accumulator)


def check_hparams(accumulator):
    from tensorboard.plugins.hparams import plugin_data_pb2

    metadata = accumulator.SummaryMetadata("_hparams_/session_start_info")
    content = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
    hparams = content.session_start_info.hparams
    assert hparams["lr"].number_value > 0 and hparams["family"].string_value == "llama", hparams


def wandb_file(run):
    files = glob.glob(os.path.join(run, "wandb", "latest-run", "*.wandb"))
    assert len(files) == 1, files
    directory = os.path.dirname(os.path.realpath(files[0]))
    siblings = glob.glob(os.path.join(os.path.dirname(directory), "offline-run-*"))
    assert [os.path.realpath(s) for s in siblings] == [directory], siblings
    return files[0]


def records_of(path):
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    store.open_for_scan(path)
    records = []
    while (data := store.scan_data()) is not None:
        records.append(wandb_internal_pb2.Record.FromString(data))
    return records


def items_of(items):
    return {item.key: json.loads(item.value_json) for item in items}


def check_wandb(run, killed):
    records = records_of(wandb_file(run))
    assert [r.num for r in records] == list(range(1, len(records) + 1)), "records are not counted"
    kinds = collections.Counter(r.WhichOneof("record_type") for r in records)
    assert kinds["run"] == 1 and records[0].HasField("run"), kinds
    ends = [] if killed else ["exit", "final", "footer"]
    assert [r.WhichOneof("record_type") for r in records[len(records) - len(ends):]] == ends, kinds
    assert kinds["exit"] == len(ends[:1]), kinds

    expected, steps = rows_of(run, "mtllm")
    found, seen, config, summary = {}, [], {}, {}
    for record in records:
        config.update(items_of(record.config.update))
        summary.update(items_of(record.summary.update))
        if not record.HasField("history"):
            continue
        items = items_of(record.history.item)
        assert len(items) == len(record.history.item), "a key is there twice"
        step = record.history.step.num
        assert items.pop("_step") == step
        time = items.pop("_timestamp")
        assert abs(time - items.pop("_runtime") - records[0].run.start_time.seconds) < 0.01
        seen.append(step)
        found.update({(step, key): (value, time) for key, value in items.items()})
    if killed:
        assert seen in (steps, steps[:-1]), f"history has the steps {seen}, not {steps}"
        expected = {key: value for key, value in expected.items() if key[0] in set(seen)}
    else:
        assert seen == steps, f"history has the steps {seen}, not {steps}"
    compare(found, expected, lambda value: value, "W&B", with_time=False)
    assert config["lr"] > 0 and config["model_config"]["model_type"] == "llama", config
    check_summary(run, summary, expected, killed)
    check_files(run, config)
    check_output(run, records, killed)


def print_record(run):
    fields = {field.name: value for field, value in records_of(wandb_file(run))[0].run.ListFields()}
    fields["tags"] = ",".join(fields.get("tags", []))
    assert fields.pop("start_time").seconds > 0
    for name in sorted(fields):
        print(name, fields[name])


def check_summary(run, summary, expected, killed):
    latest = {name: value for (_, name), (value, _) in sorted(expected.items())}
    assert summary.keys() - {"_step", "_runtime", "_timestamp"} <= latest.keys()
    if killed:
        return
    for name, value in latest.items():
        assert same(summary[name], value), f"summary: {name} is {summary[name]}, not {value}"
    with open(os.path.join(run, "wandb", "latest-run", "files", "wandb-summary.json")) as file:
        assert {k: v for k, v in json.load(file).items() if v == v and k != "_wandb"} == \
            {k: v for k, v in summary.items() if v == v}


def check_files(run, config):
    import yaml

    with open(os.path.join(run, "wandb", "latest-run", "files", "config.yaml")) as file:
        assert {k: v["value"] for k, v in yaml.safe_load(file).items()} == config
    with open(os.path.join(run, "wandb", "latest-run", "files", "wandb-metadata.json")) as file:
        assert json.load(file)["program"] == "mtllm-train"


def check_output(run, records, killed):
    """The console's lines are records, too, once a run is complete."""
    said = "".join(record.output_raw.line for record in records if record.HasField("output_raw"))
    with open(os.path.join(run, "wandb", "latest-run", "files", "output.log"), newline="") as file:
        output = file.read()
    assert "\r" not in output and "\x1b" not in output
    assert said == ("" if killed else output), f"{len(said)} of {len(output)} characters"


def main():
    run, words = sys.argv[1], sys.argv[2:]
    names = next((w.split("=")[1] for w in words if w.startswith("names=")), "mtllm")
    if "tensorboard" in words:
        check_tensorboard(run, names, "killed" in words)
    if "wandb" in words:
        check_wandb(run, "killed" in words)
    if "record" in words:
        print_record(run)


main()
