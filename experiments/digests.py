"""The sha256 of every file that is downloaded: of its content, unpacked where it is packed.

A file is checked by its line here wherever it was found. Where each comes from:

    mnist                the idx files at ossci-datasets.s3.amazonaws.com (CC BY-SA 3.0)
    tinyshakespeare      Karpathy's char-rnn on GitHub
    wikitext-2           PyTorch's examples on GitHub (CC BY-SA)
    multi30k             task1/raw of multi30k/dataset on GitHub (research and education, non-commercial)
    tatoeba-eng-fra      fra-eng.zip of manythings.org, its release of 2019-04-07; it changes with time (CC BY 2.0)
    wmt-newstest         a copy with one sentence a line; the official files of 2014 are SGML, so that what is unpacked
                         from statmt.org may differ from these (research)
"""

DIGESTS = {
    "mnist/train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "mnist/train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "mnist/t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "mnist/t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    "tinyshakespeare/input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "wikitext-2/train.txt": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
    "wikitext-2/valid.txt": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "wikitext-2/test.txt": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
    "multi30k/test_2016_flickr.cs.gz": "45adb85f688de8407fddcbe1b36dca15d12aab868149b337e2576f2d6d2ff8d8",
    "multi30k/test_2016_flickr.de.gz": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
    "multi30k/test_2016_flickr.en.gz": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
    "multi30k/test_2016_flickr.fr.gz": "cb3160d69b002bb638e66cc7612fcd56cb0af82eadc9c142dedc438afb885ef6",
    "multi30k/test_2017_flickr.de.gz": "c3078bc3b36808bf9d20eb2347ed6137016179ef59ec0d2b9b8ecc3fb2880081",
    "multi30k/test_2017_flickr.en.gz": "ce1450ddc5ab0834502579d77a170849952e15a2938b34cc503bdc25ebb4fb98",
    "multi30k/test_2017_flickr.fr.gz": "6f3764e31dac41e9455e612958bcfd4e877c5e15cd66df2c2b2be6d9bd83e5b6",
    "multi30k/test_2017_mscoco.de.gz": "58277df3c75f92f7145a11b910b553d1cf82c439249d4dc237c899609eafac22",
    "multi30k/test_2017_mscoco.en.gz": "43051fdfa86fd5395182e718a94ca67b1b227b9f7c79596ff0f6b813216981d2",
    "multi30k/test_2017_mscoco.fr.gz": "39cde3f43f32b0a6bf29ce4917a46329ff32e53070c2fac87506695a740ae0a0",
    "multi30k/test_2018_flickr.cs.gz": "1db59fe6980c9b3f9bade65122a985e71150214837d76f4768a5a8384c0b2dc7",
    "multi30k/test_2018_flickr.de.gz": "39fcc8b3331d76fb42d648d019c6898b0d5e58baac87bc2a0bb93f44ec8db207",
    "multi30k/test_2018_flickr.en.gz": "4e585c2dd525911a6ea7730e9d0b516239af3f1b1ffae6a2130223cfb639f25e",
    "multi30k/test_2018_flickr.fr.gz": "234b4a887da0da4801a3e2c6f21336231ff7dd46daeb80cfa1b551c8bbb78239",
    "multi30k/train.cs.gz": "2be68b38c8d586ff4f54eb13cc6e1baaaa053695b3f070d3038303a47f2268da",
    "multi30k/train.de.gz": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    "multi30k/train.en.gz": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    "multi30k/train.fr.gz": "5925a3c18f1587b6b54b87743106e6e8ab93618edb6f65d19eac0621f853a10d",
    "multi30k/val.cs.gz": "d53827e469b0a1ca8d57e9e26b2b64c4bc4b33f5479c7b03ae87ae5c882c3e33",
    "multi30k/val.de.gz": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
    "multi30k/val.en.gz": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
    "multi30k/val.fr.gz": "5304e444d842e962b2dda4d816b70b22a1765b15401642b7ca37a67477e708dc",
    "tatoeba-eng-fra/fra.txt": "0bb85dbaa1c896844649094d7eaf2e34bee34e84fe362b26ce7e8f2e12aae104",
    "wmt-newstest/eng-deu/news-test2008.deu": "6d86c805e6cd008c11143816daac272fdf5a3afea816983c43005717d6fe3ae2",
    "wmt-newstest/eng-deu/news-test2008.eng": "134e1140848bb0d05e774dbe35b8b69602faf401250c03dbb437bdbe38c37b6f",
    "wmt-newstest/eng-deu/newssyscomb2009.deu": "da74e91ec9f155a958a9cfcdb8e4291162b31b589e09306c40528aaf684d2fec",
    "wmt-newstest/eng-deu/newssyscomb2009.eng": "b734a44294fa3b23a2491cd9a2c59fb5eb71332ace70b2c9039978863dd0e43d",
    "wmt-newstest/eng-deu/newstest2009.deu": "41f7d4a766a99f78646474dbd21af0dd0285a5dad5c48d1b627334c11a1771d9",
    "wmt-newstest/eng-deu/newstest2009.eng": "3fc92718e7b994ca0a5dc57e63b68d5c80244a56e5bb1cec11d2e8dd10b3ff3c",
    "wmt-newstest/eng-deu/newstest2010.deu": "4f4b02d3abe150ca47a745d138d90f688edb20dd2d2fedca16aa05fd1e2018b1",
    "wmt-newstest/eng-deu/newstest2010.eng": "1ebece77e333965cbc66fde735a6f17e026b4d6690f4f7fdaba839b7bdadac3b",
    "wmt-newstest/eng-deu/newstest2011.deu": "033bc05659f61c5e51170973267d21e23a9a968557b866f3842c92e416a60e1b",
    "wmt-newstest/eng-deu/newstest2011.eng": "d387569743c0fa9097df4d4e2c1dd9e6ba9ef3cee6e0f473da3204c887dcf8fd",
    "wmt-newstest/eng-deu/newstest2012.deu": "946b9587b79271b0f3ce9cc8c0e5b310e3021ef598e1ba5dc2a24fef8960de30",
    "wmt-newstest/eng-deu/newstest2012.eng": "f9e51f85c4948033fc7d77ef427f4d88908a8dd3f778970f62d0baafac3ff97e",
    "wmt-newstest/eng-deu/newstest2013.deu": "d7ea35ab91ff3709e03ad9cb6bf5b4f2cc775cd2d72efd5254c4aec5e69663ca",
    "wmt-newstest/eng-deu/newstest2013.eng": "ace268a1d9724ca76f6d8e5c720ffdc08f01bdce45630ed8b269dc7918e1c16e",
    "wmt-newstest/eng-deu/newstest2014.deu": "ae5d110486bc33d7175e9e28c7d0051eb3e5fcd2166dd93371089852c091a20e",
    "wmt-newstest/eng-deu/newstest2014.eng": "7294bccf2879a97b3706b95c9595f1459617a8ee7130d5d8581c910e69736971",
    "wmt-newstest/eng-fra/news-test2008.eng": "134e1140848bb0d05e774dbe35b8b69602faf401250c03dbb437bdbe38c37b6f",
    "wmt-newstest/eng-fra/news-test2008.fra": "e212f59bb002d73a1bfebdcf101a6c51db3ccfd8a3115cc8a18414b6ee2a28f9",
    "wmt-newstest/eng-fra/newssyscomb2009.eng": "b734a44294fa3b23a2491cd9a2c59fb5eb71332ace70b2c9039978863dd0e43d",
    "wmt-newstest/eng-fra/newssyscomb2009.fra": "bf74d7a28aa72aa79cbff02bec00a14983f65616dd37ee53e17a37e9d933505e",
    "wmt-newstest/eng-fra/newstest2009.eng": "3fc92718e7b994ca0a5dc57e63b68d5c80244a56e5bb1cec11d2e8dd10b3ff3c",
    "wmt-newstest/eng-fra/newstest2009.fra": "0ca4995d1dff341488287e1f9d4230073a20bc6e43e268ebf5e7b476f526c07d",
    "wmt-newstest/eng-fra/newstest2010.eng": "1ebece77e333965cbc66fde735a6f17e026b4d6690f4f7fdaba839b7bdadac3b",
    "wmt-newstest/eng-fra/newstest2010.fra": "131ee7deb0ea517bdd6a85ca5f6f5ca3136c5f76daba426ef4dde3d60b9e66a9",
    "wmt-newstest/eng-fra/newstest2011.eng": "d387569743c0fa9097df4d4e2c1dd9e6ba9ef3cee6e0f473da3204c887dcf8fd",
    "wmt-newstest/eng-fra/newstest2011.fra": "9631ea545acf4b921add6baba856b03efae9f0de4c330a314091b3f925506c7f",
    "wmt-newstest/eng-fra/newstest2012.eng": "f9e51f85c4948033fc7d77ef427f4d88908a8dd3f778970f62d0baafac3ff97e",
    "wmt-newstest/eng-fra/newstest2012.fra": "29aa5aff172127f6adf5625cc2f8e44f579d524700e84f1ec0eb14f4f19719e4",
    "wmt-newstest/eng-fra/newstest2013.eng": "ace268a1d9724ca76f6d8e5c720ffdc08f01bdce45630ed8b269dc7918e1c16e",
    "wmt-newstest/eng-fra/newstest2013.fra": "909b63be5df3eb8c13e1d5967bf3f0adfdb9f6ed5e638c5bffff563ee2ff7f41",
    "wmt-newstest/eng-fra/newstest2014.eng": "9a12cb6e8efb3509ebede627e4a9c83ee64935509d561ff70f4b7bd5f93f6096",
    "wmt-newstest/eng-fra/newstest2014.fra": "2bd07dc204f965bf88e90adb6223a8cb850f9bf9840df6af1f4945195936656e",
}
