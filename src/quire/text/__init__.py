"""Text in and out: tokenizer, incremental detokenizer, stop strings, chat templates, logprob pieces. Never imports torch."""
