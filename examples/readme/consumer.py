import forebay

for message in forebay.Consumer("tokens"):
    ids = message["input_ids"].torch()  # or .numpy(), or any DLPack import: no copy
    print(message.sequence, tuple(ids.shape), int(ids.sum()))
