"""What tells languages of one script apart: their commonest function words and the letters only they use.

Lower-case, two letters or more (single letters are variables in mathematical text).  Short on purpose: every
sentence of ten words has several of them.  Words that two languages share count for both.
"""

from __future__ import annotations

FUNCTION_WORDS: dict[str, str] = {
    "en": "the of and to in is that it was for on are with as his they be at one have this from or had "
    "by not but what all were when we there can an your which their said if do will each about "
    "how up out them then she many some so these would other into has more her two like him see "
    "could no make than been its who now did get may only my our me us you he let since because "
    "therefore thus hence where also any such both must should first next here just very after "
    "before between does need find given using use gives follows",
    "fr": "le la les de des du et est un une que qui dans en pour pas par sur au aux avec ce cette ces "
    "il elle ils nous vous je on ne se sont être avoir plus mais ou où donc si leur leurs son sa "
    "ses mon ma mes tout tous comme fait été cela ça même aussi peut soit alors entre sans sous "
    "puis car ainsi lui très chaque deux trois faut",
    "de": "der die das und ist nicht ein eine einen einem einer eines zu den dem des mit auf für von im "
    "sich auch es er sie wir ich ihr an als aus bei nach wie oder aber wenn dass daß kann wird "
    "werden sind war hat haben sein nur noch so um am zum zur über durch dann also da man mehr "
    "sehr hier diese dieser dieses alle unter vor zwischen jede jeder müssen gilt damit",
    "es": "el la los las de del que en un una unos unas es son por para con no se su sus al lo como más "
    "pero si ya o este esta esto estos estas hay ser fue muy todo todos también entre cuando "
    "donde porque sobre hasta desde está están tiene nos le les me mi tu él ella ellos entonces "
    "cada dos tres puede así sin",
    "it": "il lo la gli le di del della dei delle dello degli che è e un una uno in nel nella nei per "
    "non con si su al alla ai alle da dal dalla come più ma anche se sono questo questa questi "
    "queste ci ha hanno era essere tutto tutti perché quando dove quindi ogni due tre può così "
    "allora loro suo sua noi voi poi fra tra molto senza cui",
    "pt": "os as do da dos das de que em um uma uns umas no na nos nas é são por para com não se ao aos "
    "mais como mas foi ele ela eles elas seu sua seus suas ou quando muito já também só pelo pela "
    "até isso isto este esta esse essa entre depois sem mesmo há ser tem está você nós então cada "
    "dois três pode assim onde porque",
    "nl": "de het een en van is dat die in te op voor met niet zijn aan er om ook als dan maar bij of "
    "uit nog naar heeft hij zij ze wij we ik je u dit deze door over wordt worden kan kunnen geen "
    "wat was meer hebben had hun haar onder tot zo dus omdat waar wanneer elke twee drie moet "
    "moeten tussen alle",
    "pl": "nie to się na jest do że jak ale po co tak za od przez czy dla już tylko ich jego jej może "
    "być był była było są oraz lub więc który która które którzy ten ta te tego tej tym gdy jeśli "
    "ponieważ przy pod nad bez także bardzo jeszcze każdy dwa trzy można mamy",
    "sv": "och att det som en ett är på för av med den till inte om har de han hon var jag vi ni kan "
    "men så från eller när ska skulle bara också där vid efter än nu alla mycket detta denna "
    "dessa sin sina sitt hade finns blir mellan varje två tre måste eftersom alltså då genom utan",
    "da": "og at det som en et er på for af med den til ikke om har de han hun var jeg vi kan men så "
    "fra eller når skal skulle kun også hvor ved efter end nu alle meget dette denne disse sin "
    "sine sit havde bliver mellem hver to tre må fordi derfor da gennem uden hvis være blev",
    "nb": "og at det som en et er på for av med den til ikke om har de han hun var jeg vi kan men så "
    "fra eller når skal skulle bare også hvor ved etter enn nå alle mye dette denne disse sin "
    "sine sitt hadde blir mellom hver to tre må fordi derfor da gjennom uten hvis være ble",
    "fi": "ja on ei että se oli hän ne en mutta niin kun kuin ovat ole myös jos tai joka jotka sen sitä "
    "mitä tämä nämä olla voi siis koska vain kaikki hänen minä sinä me te he minun siitä tässä "
    "nyt sitten vielä jonka mukaan kanssa ennen jälkeen kaksi kolme tulee eli",
    "cs": "je se na že to si ve jako ale do za po pro od jsou byl byla bylo být nebo tak jak který "
    "která které tento tato toto když aby než jen už také má své svůj jeho její jejich při bez "
    "nad pod mezi proto protože však každý dva tři může máme tedy",
    "ro": "și şi de la în un care nu este pe din cu sunt mai să ca ce se fi fost au dar sau pentru prin "
    "după acest această aceste aceștia cel cea cei cele lui ei lor am ai are dacă când unde deci "
    "foarte între fără toate toți fiecare doi trei poate avem astfel atunci",
    "hu": "az és hogy nem is egy ez meg csak van volt de ha mint már még vagy el ki fel be lesz kell "
    "minden akkor ezt azt aki ami amely mert után között szerint nagyon két három mi ők én te "
    "lehet pedig tehát így ahol amikor egyik nincs vannak",
    "tr": "bir ve bu da de ne için ile çok daha gibi olan var ama o ben sen biz siz en kadar sonra "
    "olarak değil mi her şey ya veya ise bunu şu önce göre çünkü ancak olduğu olur yok iki üç "
    "yani nasıl tüm diye şimdi",
    "vi": "và là của có không cho được với trong các một những người này đã để khi đó từ như cũng ra về "
    "thì nhiều vào nếu hay hoặc mà nên rằng theo trên đến sẽ còn lại bị phải ta chúng tôi hai ba "
    "số vì vậy do",
    "id": "yang dan di ini itu dengan untuk tidak dari dalam akan pada adalah ke karena juga oleh ada "
    "saya kita kami dia mereka anda atau bisa dapat lebih telah sudah jika maka sebagai antara "
    "setiap dua tiga harus seperti tetapi hanya saat ketika tersebut",
    "sw": "na ya wa kwa ni katika za la cha kama hii hiyo huo huu hizo lakini au pia sana yake wake "
    "watu kuwa ili bila baada kabla kila mbili tatu hivyo kwamba wao sisi wewe mimi yeye si vya "
    "hapa sasa bado tu",
    "ru": "не на что он как это по но они мы за из то все она так его от бы для вы же был была было "
    "быть или если только еще ещё уже при до их чтобы есть может который которая которые этот эта "
    "эти когда где потому также тоже каждый два три можно нужно поэтому тогда между без у",
    "uk": "не на що він як це по але вони ми за із то всі вона так його від би для ви ж був була було "
    "бути або якщо тільки ще вже при до їх щоб може який яка які цей ця ці коли де тому також теж "
    "кожен два три можна треба потрібно тоді між без та й є",
    "bg": "не на че той как това по но те ние за от до се са си ще да като или ако само още вече при бе "
    "беше може който която които този тази тези когато където защото също всеки две три трябва "
    "тогава между без има във със след съм сме",
    "sr": "не на да он као ово то по али они ми за из се су је сам или ако само још већ при до би био "
    "била било бити може који која које овај ова ове када где зато такође сваки два три треба "
    "тада између без има није од са што",
    "ar": "في من على إلى أن هذا هذه التي الذي كان لا ما مع عن هو هي أو ثم قد كل لم إذا بين بعد قبل حتى "
    "ذلك تلك كما لأن إن ليس يكون حيث عند لكن غير نحن",
    "fa": "در از به که این را با است برای آن یک خود تا کرد بر هم نیز می شد شود هر اما یا ما او آنها شده "
    "بود باشد اگر پس چون بین دو سه هستند نیست",
    "ur": "کے میں کی ہے اور سے کا کو اس پر نے کہ ہیں یہ بھی تو ایک کر نہیں وہ جو تھا ہو گیا لیے ساتھ "
    "اگر یا ہم اپنے جب تک پھر کیا",
    "hi": "के में की है और से का को पर ने कि हैं यह भी तो एक कर नहीं वह जो था हो गया लिए साथ अगर या हम "
    "अपने जब तक फिर क्या इस उस थे",
    "mr": "आहे आणि या ते तो ती हे व च मध्ये आहेत होते होता नाही की पण तर एक किंवा साठी त्या त्यांनी आपण "
    "मी काय असे झाले करून जर म्हणून",
    "ne": "छ र को मा ले हो भने यो पनि छन् थियो गर्न गरेको लागि एक छैन त्यो हुन् बाट संग तर वा हामी म के यस "
    "भएको गरे गर्छ भन्ने पर्छ हुन्छ सक्छ गर्नु हुने त्यस कति",
}

# Letters beyond those that all languages of the script share.
LETTERS: dict[str, str] = {
    "en": "",
    "fr": "àâæçéèêëîïôœùûüÿ",
    "de": "äöüß",
    "es": "áéíñóúü",
    "it": "àèéìíîòóùú",
    "pt": "áâãàçéêíóôõúü",
    "nl": "éëïóöüèê",
    "pl": "ąćęłńóśźż",
    "sv": "åäöé",
    "da": "æøåé",
    "nb": "æøåéòô",
    "fi": "äöå",
    "cs": "áčďéěíňóřšťúůýž",
    "ro": "ăâîșțşţ",
    "hu": "áéíóöőúüű",
    "tr": "çğıöşüâî",
    "vi": "àáâãèéêìíòóôõùúýăđĩũơư" + "".join(map(chr, range(0x1EA0, 0x1EFA))),
    "id": "",
    "sw": "",
    "ru": "ёйщъыьэюя",
    "uk": "єіїґйщьюя",
    "bg": "йщъьюя",
    "sr": "ђјљњћџ",
    "ar": "كيةىأإؤئءآ",
    "fa": "پچژگکیآئأؤءۀ",
    "ur": "پچژگکیٹڈڑںہھےۓآئؤءۂ",
    "hi": "",
    "mr": "",
    "ne": "",
}
SHARED_LETTERS: dict[str, str] = {
    "LATIN": "abcdefghijklmnopqrstuvwxyz",
    "CYRILLIC": "абвгдежзиклмнопрстуфхцчш",
    "ARABIC": "ابتثجحخدذرزسشصضطظعغفقلمنهو",
    "DEVANAGARI": "",
}
# Too alike to be told apart by a short list: neither is evidence against the other.
ALIKE: dict[str, str] = {"da": "nb", "nb": "da"}
