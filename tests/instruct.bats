#!/usr/bin/env bats
# Guards: README's six commands, from text to an instruction-tuned model: what one writes the next
# one reads, and tokens of the template have the same ids in the data, the model and its tokenizer.

load common

added='<|im_start|>,<|im_end|>'

setup() {
    common_setup
    export PATH="$build_dir/data:$PATH" MTLLM_TEMPLATES="$source_dir/etc/templates"
    tokenizer="$source_dir/tests/golden/tokenizers/sentencepiece"
    [ -e "$tokenizer" ]
    awk 'BEGIN {
        srand(1)
        n = split("the quick brown fox jumps over a lazy dog while seven wizards brew tea", word, " ")
        for (i = 0; i < 300; i++) {
            text = ""
            for (k = 0; k < 60; k++) text = text " " word[int(rand() * n) + 1]
            printf "{\"text\": \"%s\"}\n", text
        }
    }' | gzip > text.jsonl.gz
    awk 'BEGIN {
        srand(2)
        for (i = 0; i < 300; i++) {
            printf "{\"messages\": [{\"role\": \"system\", \"content\": \"Be short.\"}"
            for (k = 0; k < 1 + i % 3; k++) {
                a = int(rand() * 9); b = int(rand() * 9)
                printf ", {\"role\": \"user\", \"content\": \"What is %d plus %d?\"}", a, b
                printf ", {\"role\": \"assistant\", \"content\": \"It is %d.\"}", a + b
            }
            print "]}"
        }
    }' | gzip > chat.jsonl.gz
}

@test "six commands, from text to an instruction-tuned model" {
    local small="--family=llama --layers=2 --hidden-size=64 --ffn-size=96 --heads=4
        --vocab-size=3000 --max-positions=128" batch="--global-batch-size=8 --micro-batch-size=8"

    mtllm-data tokenize --tokenizer="$tokenizer" --output=text text.jsonl.gz
    train 1 $small $batch --tokenizer="$tokenizer" --data=text --steps=10 --run-dir=base
    h5-to-hf base hf
    mtllm-data tokenize --tokenizer=hf --chat-template=chatml --add-tokens="$added" --output=chat \
        chat.jsonl.gz
    mtllm-data show chat 0 --tokenizer=hf --add-tokens="$added" > shown
    grep -c '⟦It is [0-9]*\.<|im_end|>⟧' shown | grep -x 1
    train 1 $batch --init=hf --packing=yes --add-tokens="$added" --data=chat --split=9,1,0 \
        --steps=40 --lr=3e-3 --eval-interval=20 --eval-steps=2 --run-dir=tuned
    losses tuned/metrics.jsonl | awk 'NR == 1 { first = $2 } END { exit !($2 < 0.6 * first) }'
    h5-to-hf tuned my-chat-model
    # The turn's end, as the data have it, the tokenizer and the model.
    mtllm-data show chat 0 | tr -d '⟦⟧' | tr ' ' '\n' | grep -qx 3001
    jq -e '.added_tokens[] | select(.content == "<|im_end|>").id == 3001' my-chat-model/tokenizer.json
    jq -e '.vocab_size == 3002' my-chat-model/config.json
}
