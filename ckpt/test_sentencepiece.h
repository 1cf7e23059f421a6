#ifndef MTLLM_CKPT_TEST_SENTENCEPIECE_H
#define MTLLM_CKPT_TEST_SENTENCEPIECE_H

/* A SentencePiece model of one piece and these settings, as protocol buffer bytes. */
static const unsigned char spm[] = {
    0x0a, 3,    0x0a, 1,    'a', /* pieces: {piece: "a"} */
    0x12, 28,                    /* trainer_spec */
    0x18, 2,                     /* model_type: BPE */
    0xc8, 0x02, 5,               /* bos_id 41: 5 */
    0xd0, 0x02, 6,               /* eos_id 42: 6 */
    0xd8, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, /* pad_id 43: -1 */
    0xf2, 0x02, 5,    '<',  'b',  'o',  's',  '>',                          /* bos_piece 46 */
    0x15, 0,    0,    0,    0,                                              /* a float, skipped */
    0x1a, 2,    0x20, 0, /* no collapsing of spaces */
};

#endif
