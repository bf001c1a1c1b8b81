"""What translation needs beside a model: parallel texts, vocabularies, examples to train on, and scores.

texts = parallel("multi30k", "de", "en")                            # texts.py: train, valid, tests
joint = train_bpe(chain(texts.train.source, texts.train.target), 8000)  # vocabulary.py: from the training side only
vocabularies = Vocabularies(joint, joint)
examples, left_out = encoded(texts.train, vocabularies, limit=50)   # examples.py
sequences = Sequences(reversed_source(examples)._asdict())          # lstm_rot.training.data
bleu(hypotheses, texts.tests["test_2016_flickr"].target)            # scores.py
"""
