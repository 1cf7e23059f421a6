#!/usr/bin/env bats
# Guards: mtllm-data as a tool for corpora: a token file for each member of JSON lines.

load common

setup() {
    common_setup
    program=$build_dir/data/mtllm-data
    model=$source_dir/tests/golden/tokenizers/sentencepiece/tokenizer.model
    echo x > probe
    "$program" tokenize --tokenizer="$model" --output=probe probe || [ $? -ne 78 ] ||
        skip "built without SentencePiece"
    rm probe*
}

tokenize() {
    "$program" tokenize --tokenizer="$model" "$@"
}

# same A B: two token files with the same bytes.
same() {
    cmp "$1.bin" "$2.bin" && cmp "$1.idx" "$2.idx"
}

@test "several members of JSON lines: a token file each" {
    for i in $(seq 500); do
        echo "{\"title\": \"number $i\", \"body\": \"the text of $i\", \"id\": $i}"
    done > good.jsonl
    tokenize --output=title --key=title good.jsonl
    tokenize --output=body --key=body good.jsonl
    {
        head -n 200 good.jsonl
        echo '{"title": "without a body"}'
        echo '{"title": "with a body that is none", "body": 1}'
        echo '{"title": " ", "body": "\t"}'
        tail -n +201 good.jsonl
    } > lines.jsonl
    run tokenize --output=out --key=title,body lines.jsonl
    [ "$status" -eq 0 ]
    [[ $output == *'lines.jsonl:201: no member "body"'* ]]
    [[ $output == *'lines.jsonl:202: member "body" is not a string'* ]]
    [[ $output == *"1000 documents"*"2 empty documents skipped, 2 bad lines skipped"* ]]
    same title out_title_document
    same body out_body_document
    [ "$(ls out* | wc -l)" -eq 4 ]
    run tokenize --output=none --key=title,body good.jsonl "$source_dir/README.md"
    [ "$status" -eq 64 ]
    [[ $output == *"an input is plain text"* ]]
    for keys in a,b,a a, , a,b/c a,b,c,d,e,f,g,h,i; do
        run tokenize --output=none --key=$keys good.jsonl
        [ "$status" -eq 64 ]
    done
    [ -z "$(ls none* 2>/dev/null)" ]
}
