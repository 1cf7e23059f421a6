#!/usr/bin/env bats
# Guards: a page of mtllm-report shows what the run did, whatever state the run is in; it is
# well-formed, loads nothing, stays small and quick for long runs, and fits the screen that it is
# looked at on, in the light and in the dark; charts by themselves are well-formed SVG.

load common

model="--family=llama --layers=2 --hidden-size=64 --ffn-size=96 --heads=8 --kv-heads=4
    --vocab-size=259 --max-positions=32"
run="--data=$BATS_FILE_TMPDIR/data --steps=600 --lr=3e-3 --lr-warmup-steps=3 --global-batch-size=8
    --seed=5 --run-dir=run --log-every=1000 --split=90,10,0 --eval-interval=50 --save-interval=100"

setup_file() {
    "${builddir:-$PWD}/tests/make_tokens" "$BATS_FILE_TMPDIR/data" 259 300 1
    make_history "$BATS_FILE_TMPDIR/long" 100000
}

setup() {
    common_setup
}

# make_history RUN STEPS: what a run of that many steps leaves, with three restarts, a spike of the
# loss, and a loss that was not finite.
make_history() {
    mkdir -p "$1"
    awk -v steps="$2" -v starts="$1/starts.jsonl" 'BEGIN {
        srand(1)
        time = 1760000000
        for (step = 1; step <= steps; step++) {
            part = step / steps
            loss = 2.2 + 8.6 * exp(-40 * part) + 0.6 * (1 - part) ^ 2 + 0.1 * rand()
            step_s = 0.8 + 0.05 * rand() + (step % (steps / 50) == 0 ? 6 : 0)
            if (step == 1 || step % int(steps / 4) == 1 && part < 0.9) {
                printf "{\"time\":%.3f,\"step\":%d,\"ranks\":16,\"layout\":\"tp2 cp1 pp2 dp4\"," \
                    "\"job\":\"4711\"}\n", time + 5, step - 1 > starts
                time += 60
            }
            time += step_s
            if (step == int(steps * 0.62)) loss = 9.5
            loss = step == int(steps * 0.4) ? "null" : sprintf("%.6f", loss)
            printf "{\"step\":%d,\"loss\":%s,\"lr\":%.8g,\"grad_norm\":%.5f,\"tokens\":%d," \
                "\"samples\":%d,\"tokens_per_s\":%.1f,\"tflops\":%.5f,\"mfu\":%.4f," \
                "\"step_s\":%.6f,\"data_wait_s\":%.6f,\"forward_s\":%.6f,\"backward_s\":%.6f," \
                "\"communication_s\":%.6f,\"optimizer_s\":%.6f,\"pipeline_idle\":0.08," \
                "\"skipped\":%d,\"time\":%.3f}\n", step, loss, 3e-4 * (1 - 0.9 * part),
                0.8 + rand() + 5 * exp(-30 * part), step * 65536, step * 32, 65536 / step_s,
                400 / step_s, 0.34 / step_s, step_s, 0.01 * step_s, 0.25 * step_s, 0.5 * step_s,
                0.08 * step_s, 0.06 * step_s, (part >= 0.4), time
            if (step % int(steps / 25) == 0)
                for (set = 1; set <= 2; set++)
                    printf "{\"eval\":\"%s\",\"step\":%d,\"loss\":%.6f,\"perplexity\":%.6f," \
                        "\"tokens\":%d,\"time\":%.3f}\n", set == 1 ? "valid" : "code", step,
                        2.5 - 0.2 * set, exp(2.5 - 0.2 * set), step * 65536, time
        }
    }' > "$1/metrics.jsonl"
}

# chart_ids FILE: the names of a page's charts, in order.
chart_ids() {
    sed -n 's/^<figure.* id="\([^"]*\)">$/\1/p' "$1"
}

# well_formed FILE: every element of the page is closed in order, attributes stand once, nothing is
# loaded, and no script runs.
well_formed() {
    python3 - "$1" <<'PYTHON'
import html.parser, re, sys

class Checker(html.parser.HTMLParser):
    void = {"meta", "br", "link", "img", "input", "hr"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.count, self.ids = [], {}, set()

    def start(self, tag, attributes, closed):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), (tag, names)
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "image", "use"), tag
        for name, value in attributes:
            assert not name.startswith("on") and name not in ("src", "href", "xlink:href"), name
            if name == "id":
                assert value not in self.ids, value
                self.ids.add(value)
        self.count[tag] = self.count.get(tag, 0) + 1
        if not closed and tag not in self.void:
            self.open.append(tag)

    def handle_starttag(self, tag, attributes):
        self.start(tag, attributes, False)

    def handle_startendtag(self, tag, attributes):
        self.start(tag, attributes, True)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-5:], self.getpos())
        self.open.pop()

text = open(sys.argv[1], encoding="utf-8").read()
checker = Checker()
checker.feed(text)
checker.close()
assert not checker.open, checker.open
assert checker.count["html"] == 1
assert 'name="viewport"' in text and "prefers-color-scheme:dark" in text
assert not re.search(r"https?:|url\(|@import", text)
PYTHON
}

# picture PAGE WIDTH HEIGHT COLOUR [OPTION...]: as Chromium shows it, in picture.png. There must be
# curves of that colour, and nothing may reach the right edge: what is wider than the screen would.
picture() {
    local page=$1 width=$2 height=$3 colour=$4
    shift 4
    HOME=$PWD timeout 120 chromium --headless --no-sandbox --disable-gpu --hide-scrollbars \
        --disable-dev-shm-usage --user-data-dir="$PWD/chromium" "$@" \
        --window-size="$width,$height" --screenshot="$PWD/picture.png" "file://$page" >chromium.log 2>&1
    # Debian's own Python, whose package of PIL it is.
    /usr/bin/python3 - picture.png "$width" "$height" "$colour" <<'PYTHON'
import sys
from PIL import Image, ImageColor

picture = Image.open(sys.argv[1]).convert("RGB")
width, height, colour = int(sys.argv[2]), int(sys.argv[3]), ImageColor.getrgb(sys.argv[4])
assert picture.size == (width, height), picture.size
pixels = picture.load()
paper = pixels[0, 0]
edge = [(x, y) for x in (*range(5), *range(width - 5, width)) for y in range(height)
        if pixels[x, y] != paper]
assert not edge, f"{len(edge)} pixels at the edge, the first at {edge[0]}"
drawn = sum(1 for x in range(width) for y in range(height) if pixels[x, y] == colour)
assert drawn > 200, f"{drawn} pixels of {colour}"
colours = picture.getcolors(1 << 24)
assert len(colours) > 50, f"{len(colours)} colours"
assert max(colours)[0] < 0.97 * width * height, "blank"
print("paper", "#%02x%02x%02x" % paper)
PYTHON
}

@test "a run that was stopped and went on: curves, restart, checkpoints, settings" {
    train_in_background first 1 $model $run
    wait_for 60 reached run/metrics.jsonl 25
    kill -TERM $(trainer_pids)
    wait $run_pid || [ $? = 75 ]
    stopped=$(newest_step run)
    train 1 $model $run > second

    # Two starts are recorded, with the steps that they went on from.
    [ "$(jq -s -c 'map(.step)' run/starts.jsonl)" = "[0,$stopped]" ]
    jq -e -s 'all(.[]; .ranks == 1 and .layout == "tp1 cp1 pp1 dp1" and .time > 1.7e9)' run/starts.jsonl

    mtllm-report run
    well_formed run/report.html
    chart_ids run/report.html > charts
    for chart in loss late_loss validation_loss validation_perplexity lr grad_norm throughput \
        step_s parts progress; do
        grep -qx "$chart" charts
    done
    grep -q "<dt>Steps</dt><dd>600<small>of 600, 100" run/report.html
    grep -q "<dt>Restarts</dt><dd>1" run/report.html
    grep -q "run: restart 1, from step $stopped (20" run/report.html
    grep -q '<td class="number">600</td><td>complete, latest</td>' run/report.html
    grep -q '<th>global-batch-size</th><td class="value">8</td><td class="origin">command line</td>' \
        run/report.html
    # A damaged checkpoint is said to be.
    truncate -s -1 run/ckpt/step-00000600/shard-00000.h5
    mtllm-report -o damaged.html run
    grep -q '<td class="number">600</td><td class="value">.*shard-00000.h5' damaged.html
    # The same run, the same page.
    mtllm-report --output=- run > again.html
    cmp damaged.html again.html
}

@test "resume=never sets the record of starts aside with the rest" {
    train 1 $model $run --steps=4 --eval-interval=0
    train 1 $model $run --steps=4 --eval-interval=0 --resume=never
    [ "$(wc -l < run/starts.jsonl)" = 1 ]
    [ "$(wc -l < run/ckpt.1/starts.jsonl)" = 1 ]
    # A run that is complete does not start.
    train 1 $model $run --steps=4 --eval-interval=0
    [ "$(wc -l < run/starts.jsonl)" = 1 ]
    # A record that was torn takes no other with it.
    truncate -s -9 run/starts.jsonl
    train 1 $model $run --steps=6 --eval-interval=0
    [ "$(tail -n 1 run/starts.jsonl | jq .step)" = 4 ]
    # One that cannot be made is a warning.
    rm run/starts.jsonl
    mkdir run/starts.jsonl
    train 1 $model $run --steps=8 --eval-interval=0 > log 2>&1
    grep 'warning: run/starts.jsonl: cannot write: Is a directory; this start is not recorded' log
}

@test "100,000 steps: at most 1 MB and 2 s, and a spike of one step is seen" {
    long=$BATS_FILE_TMPDIR/long
    TIMEFORMAT=%U
    time (mtllm-report -o page.html "$long") 2> error
    seconds=$(tail -n 1 error)
    echo "$seconds s, $(stat -c %s page.html) bytes"
    awk -v seconds="$seconds" 'BEGIN { exit !(seconds <= 2) }'
    [ "$(stat -c %s page.html)" -le 1000000 ]
    well_formed page.html
    [ "$(sed -n '/id="loss"/,/<\/figure>/p' page.html | grep -o ': restart [123]' | sort -u | wc -l)" = 3 ]
    grep -q '<dt>Restarts</dt><dd>3<small>job 4711' page.html
    # Smoothed the spike is gone; it is there in what a pointer says, and so is the number lost.
    grep -q '^training: 2\.[0-9]* nats (2\.[0-9]* to 9\.5)' page.html
    grep -q 'step 40,000: not a finite number' page.html

    # Eight of them together are no larger.
    mtllm-report -o eight.html "$long" "$long/" "$long/." "$long/./" "$long//" "$long//." \
        "$long/.//" "$long/././"
    [ "$(stat -c %s eight.html)" -le 1000000 ]
    well_formed eight.html
}

@test "a page fits phones and desktops, light and dark" {
    mtllm-report -o page.html "$BATS_FILE_TMPDIR/long"
    picture "$PWD/page.html" 390 844 "#0072b2" | grep -q "paper #f4f5f7"
    picture "$PWD/page.html" 390 6000 "#0072b2"
    picture "$PWD/page.html" 1400 900 "#0072b2"
    picture "$PWD/page.html" 390 844 "#56b4e9" --blink-settings=preferredColorScheme=0 |
        grep -q "paper #0e1115"
    picture "$PWD/page.html" 1400 900 "#56b4e9" --blink-settings=preferredColorScheme=0 |
        grep -q "paper #0e1115"
}

@test "several runs over each other, with a legend and what tells them apart" {
    make_history one 300
    make_history two 200
    make_history with-a-rather-long-name-as-people-give-them-to-sweeps-of-learning-rates 100
    printf 'lr = 3e-4   ; command line\nseed = 1 ; default\n' > one/settings.ini
    printf 'lr = 1e-4   ; command line\nseed = 1 ; default\n' > two/settings.ini
    mtllm-report one two with-*
    [ -s one/report.html ]
    [ ! -e two/report.html ]
    well_formed one/report.html
    sed -n '/id="loss"/,/<\/figure>/p' one/report.html > loss
    for colour in 0 1 2; do
        grep -q "class=\"line s$colour\"" loss
        grep -q "class=\"raw[a-z ]* s$colour\"" loss
    done
    grep -q '</svg>two</span>' loss
    chart_ids one/report.html | grep -qx parts_two
    # lr differs, seed does not, and the third run has neither.
    sed -n '/Settings that differ/,/<details>/p' one/report.html > differ
    grep -q '<th>lr</th><td class="value">3e-4</td><td class="value">1e-4</td><td class="value"></td>' differ
    picture "$PWD/one/report.html" 390 6000 "#d55e00"

    # Namesakes are told apart by their paths.
    mkdir -p other && cp -r two other/two
    mtllm-report -o same.html two other/two
    grep -q '</svg>other/two</td>' same.html
}

@test "each chart by itself is well-formed SVG" {
    make_history run 300
    mtllm-report --svg=list run > list
    [ "$(wc -l < list)" -ge 12 ]
    while read -r name title; do
        mtllm-report --svg="$name" run > chart.svg
        xmllint --noout chart.svg
        grep -qF "<title>$title</title>" chart.svg
        ! grep -q 'http' <(sed 's|http://www.w3.org/2000/svg||' chart.svg) || false
    done < list
    mtllm-report --svg loss -o loss.svg run
    xmllint --noout loss.svg
    ! mtllm-report --svg=los run 2> error || false
    grep -q '^mtllm-report: --svg=los: there is no such chart of this; --svg=list names' error
}

@test "parts of a step, memory, both ways of MFU, epochs of datasets" {
    mkdir run
    for step in $(seq 50); do
        echo "{\"step\":$step,\"loss\":2,\"mfu\":0.4,\"mfu_full\":0.5,\"step_s\":1,\"data_wait_s\":0.1," \
            "\"forward_s\":0.2,\"backward_s\":0.4,\"communication_s\":0.1,\"optimizer_s\":0.05," \
            "\"checkpoint_s\":0.25,\"memory_gib\":12.5,\"loss_scale\":1,\"skipped\":0," \
            "\"datasets\":{\"books\":{\"tokens\":5,\"epochs\":0.5},\"code\":{\"tokens\":1,\"epochs\":2}}}"
    done > run/metrics.jsonl
    mtllm-report run
    well_formed run/report.html
    # What never changes and says nothing has no chart.
    [ "$(chart_ids run/report.html | xargs)" = "loss late_loss mfu step_s parts memory epochs" ]
    sed -n '/id="mfu"/,/<\/figure>/p' run/report.html | grep -q '^full attention: 50 %'
    sed -n '/id="parts"/,/<\/figure>/p' run/report.html > parts
    grep -q '^Backward: 0.4 s' parts
    grep -q '^Rest: 0.15 s' parts
    grep -q '^Checkpoint, between steps: 0.25 s' parts
    sed -n '/id="epochs"/,/<\/figure>/p' run/report.html > epochs
    grep -q '^books: 0\.5' epochs
    grep -q '^code: 2' epochs
}

@test "metrics that nobody knows get charts of their own, and names cannot break the page" {
    mkdir run
    for step in 1 2 3; do
        echo "{\"step\":$step,\"loss\":2,\"toxicity\":0.$step,\"<b>&\\\"'\":1}"
        echo "{\"eval\":\"</svg><script>\",\"step\":$step,\"loss\":2}"
    done > run/metrics.jsonl
    echo "</table><script>alert(1)</script> = '\"<&> ; \"><b>" > run/settings.ini
    mtllm-report run
    well_formed run/report.html
    chart_ids run/report.html | grep -qx toxicity
    mtllm-report --svg='<b>&"'"'" run > chart.svg
    xmllint --noout chart.svg
}

@test "runs that are young, going on, damaged or without validation" {
    # One step.
    mkdir one
    echo '{"step":1,"loss":5.5,"lr":1e-3,"step_s":0.5,"time":1760000000}' > one/metrics.jsonl
    mtllm-report one
    well_formed one/report.html
    chart_ids one/report.html | grep -qx loss
    ! chart_ids one/report.html | grep -q validation || false
    picture "$PWD/one/report.html" 390 844 "#ffffff"

    # No step yet.
    mkdir empty
    : > empty/metrics.jsonl
    mtllm-report empty 2> error
    grep -q '^mtllm-report: warning: empty: no step is recorded yet$' error
    well_formed empty/report.html
    grep -q 'class="note">empty: no step is recorded yet' empty/report.html

    # Written to at this moment; nobody is told of that.
    make_history run 100
    truncate -s -20 run/metrics.jsonl
    mtllm-report run 2> error
    [ ! -s error ]
    well_formed run/report.html

    # Damaged.
    sed -i '7s/.*/{"step":7,"lo/; 9s/.*//' run/metrics.jsonl
    mtllm-report run 2> error
    grep -q '^mtllm-report: warning: run/metrics.jsonl: 2 of [0-9]* lines are no records and are passed over; the first is line 7$' error
    grep -q 'class="note">run: 2 of [0-9]* lines of metrics.jsonl are no records' run/report.html

    # Everything lost.
    echo '{"step":1,"loss":null}' > one/metrics.jsonl
    mtllm-report one
    grep -q 'step 1: not a finite number' one/report.html
}

@test "without a record of starts, gaps in time are taken for restarts, and said to be" {
    make_history run 400
    rm run/starts.jsonl
    awk -F'"time":' '{ split($2, rest, "}"); step++
        printf "%s\"time\":%.3f}\n", $1, rest[1] + (step > 200 ? 7200 : 0) }' \
        run/metrics.jsonl > shifted
    mv shifted run/metrics.jsonl
    mtllm-report run
    grep -q 'restart 1 (a guess from a gap)' run/report.html
    grep -q '<small>a guess from gaps' run/report.html

    # A later start that was recorded is the second.
    echo '{"time":1760007380,"step":200,"job":"12"}' > run/starts.jsonl
    mtllm-report run
    grep -q 'run: restart 1, from step 200, job 12 (2025-10-09 10:56 UTC)' run/report.html
    grep -q '<dt>Restarts</dt><dd>1<small>job 12' run/report.html
}

@test "what cannot be is refused, and a page is whole or as it was" {
    status_of() { set +e; "$@" > output 2> error; status=$?; set -e; cat error; }
    status_of mtllm-report
    [ $status = 64 ]
    status_of mtllm-report --sgv=loss run
    [ $status = 64 ]
    grep -q '^mtllm-report: --sgv=loss: no such option; see --help$' error
    status_of mtllm-report missing
    [ $status = 65 ]
    grep -q '^mtllm-report: missing: no such directory; name the directory of a run' error
    mkdir other
    status_of mtllm-report other
    [ $status = 65 ]
    grep -q '^mtllm-report: other: not a run: it has no metrics.jsonl, settings.ini or ckpt/$' error
    make_history run 100
    status_of mtllm-report -o no/such/place.html run
    [ $status = 74 ]
    grep -q '^mtllm-report: cannot write no/such/place.html' error
    status_of mtllm-report -o /dev/full run
    [ $status = 74 ]
    status_of mtllm-report -o "" run
    [ $status = 64 ]
    grep -q '^mtllm-report: --output=: a file name is missing' error
    status=0
    mtllm-report --help > /dev/full || status=$?
    [ $status = 74 ]
    # Standard error is closed: its number is not that of the page.
    sed -i '3s/.*/no record/' run/metrics.jsonl
    mtllm-report run 2>&-
    ! grep -a 'mtllm-report: warning' run/report.html || false
    echo before > run/report.html
    (
        ulimit -f 8
        trap '' XFSZ
        status_of mtllm-report run
        [ $status = 74 ]
    )
    [ "$(cat run/report.html)" = before ]
    [ ! -e run/report.html.tmp ]
    mtllm-report --help | grep -q '^Usage: mtllm-report \[OPTION\]\.\.\. RUN\.\.\.$'
    mtllm-report --version | grep -q '^mtllm-report (mtllm) '
}
