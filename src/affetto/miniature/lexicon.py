"""The miniature's vocabulary: common English words by part of speech, and the words held out of it.

`HELD_OUT` words are spelled regularly and never occur in the base's training text, so saying them
right shows that the base learned spelling and not a list. Words for emotions are left out, since
evaluation texts must not name the emotion that they are spoken with.
"""

from __future__ import annotations

_NOUNS = """
apple arm army artist attic aunt author baby back bag baker ball band bank banker barn basin bath beach
bean bear beard bed bee bell belt bench bike bill bird blanket block board boat body bone book boot
border boss bottle bowl box boy branch bread breakfast brick bridge brother brush bucket builder building
bus bush butcher butter button cabin cable cake camera camp canal candle cap captain car card carpet
carriage cart case castle cat cave ceiling cellar center chain chair chalk channel chapter cheese
cherry chest chicken chief child chimney church circle city class clerk clock cloth cloud club coach
coal coast coat coffee coin college color column company computer cook copper corner cottage cotton
couch country couple cousin cover cow cream crowd crown cup curtain customer dance daughter day dealer
desk diamond dinner dish doctor dog doll door dress driver drum duck dust eagle ear east edge egg
elbow elephant engine engineer entrance evening eye face factory family fan farm farmer father
feather fence ferry field film finger fire fish flag floor flour flower fly fog forest fork fountain fox
frame friend frog fruit game garage garden gate gift girl glass glove goat gold grain grandmother grape
grass gun guard guest guide guitar habit hair hall hammer hand harbor hat hawk head heart helmet hen
hill hole home honey hook horse hospital hotel hour house husband ice idea insect island jacket jam jar
job judge juice jungle kettle key kid king kitchen kite knee knife ladder lady lake lamp lane
language lawyer leader leaf leather leg lemon lesson letter library light line lion lip list lock log
lunch machine magazine mail manager map market mask mat meal meat medal melon member message metal
milk miller minister minute mirror model moment money monkey month moon morning mother motor mountain
mouse mouth mud museum music nail name napkin neck needle neighbor nest net news night north nose note
number nurse nut oak ocean office officer oil onion orange orchard oven owl owner page paint painter
pair palace pan paper parent park parrot partner party passenger path peach pear pearl pen pencil pepper
person phone photo piano picture pie pig pillow pilot pipe plan plane plant plate player plum pocket
poem poet point police pond pony pool porch port post pot potato powder present president price prince
princess printer prize problem purse queen question rabbit radio rain rainbow razor record report
ribbon rice ring river road robin rock roof room root rope rose rug ruler sack saddle sail sailor salad
salt sand sandwich saucer scarf school science scissors screen sea seat secret seed sentence servant
shadow sheep sheet shelf shell ship shirt shoe shop shoulder shovel sign signal silk singer sink sister
skin skirt sky sled smoke snail snake snow soap sock sofa soldier son song sound soup south spider
spoon spring square stable stage stair stamp star station statue steam steel step stick stone stool
store storm story stove stranger straw stream street student sugar suit summer sun supper surface sweater
swing table tail tailor tank tape teacher team telephone tent theater thread ticket tie tiger time toe
tomato tool tooth towel tower town toy track trader traffic train tray treasure tree trip truck trunk
tunnel turkey turtle umbrella uncle uniform valley van vase village violin visitor voice wagon waiter
wall wallet watch water wave weather week west whale wheat wheel whistle wife wind window wing winter
wire witness wolf woman wood wool word worker world worm wrist writer yard year zoo
"""

# base, third person, past, -ing
_VERBS = """
add:adds:added:adding ask:asks:asked:asking bake:bakes:baked:baking borrow:borrows:borrowed:borrowing
break:breaks:broke:breaking bring:brings:brought:bringing brush:brushes:brushed:brushing
build:builds:built:building burn:burns:burned:burning buy:buys:bought:buying call:calls:called:calling
carry:carries:carried:carrying catch:catches:caught:catching change:changes:changed:changing
check:checks:checked:checking choose:chooses:chose:choosing clean:cleans:cleaned:cleaning
close:closes:closed:closing collect:collects:collected:collecting cook:cooks:cooked:cooking
copy:copies:copied:copying count:counts:counted:counting cover:covers:covered:covering
cross:crosses:crossed:crossing cut:cuts:cut:cutting deliver:delivers:delivered:delivering
describe:describes:described:describing draw:draws:drew:drawing drop:drops:dropped:dropping
dry:dries:dried:drying examine:examines:examined:examining explain:explains:explained:explaining
feed:feeds:fed:feeding fill:fills:filled:filling find:finds:found:finding finish:finishes:finished:finishing
fix:fixes:fixed:fixing fold:folds:folded:folding follow:follows:followed:following
forget:forgets:forgot:forgetting gather:gathers:gathered:gathering get:gets:got:getting
give:gives:gave:giving grab:grabs:grabbed:grabbing guard:guards:guarded:guarding hang:hangs:hung:hanging
hear:hears:heard:hearing help:helps:helped:helping hide:hides:hid:hiding hold:holds:held:holding
hunt:hunts:hunted:hunting join:joins:joined:joining keep:keeps:kept:keeping kick:kicks:kicked:kicking
know:knows:knew:knowing learn:learns:learned:learning leave:leaves:left:leaving lend:lends:lent:lending
lift:lifts:lifted:lifting load:loads:loaded:loading lock:locks:locked:locking lose:loses:lost:losing
make:makes:made:making mark:marks:marked:marking measure:measures:measured:measuring
meet:meets:met:meeting mend:mends:mended:mending miss:misses:missed:missing mix:mixes:mixed:mixing
move:moves:moved:moving need:needs:needed:needing notice:notices:noticed:noticing
offer:offers:offered:offering open:opens:opened:opening order:orders:ordered:ordering
pack:packs:packed:packing paint:paints:painted:painting pass:passes:passed:passing
pay:pays:paid:paying pick:picks:picked:picking place:places:placed:placing plan:plans:planned:planning
plant:plants:planted:planting polish:polishes:polished:polishing pour:pours:poured:pouring
print:prints:printed:printing protect:protects:protected:protecting pull:pulls:pulled:pulling
push:pushes:pushed:pushing put:puts:put:putting raise:raises:raised:raising reach:reaches:reached:reaching
read:reads:read:reading remember:remembers:remembered:remembering remove:removes:removed:removing
repair:repairs:repaired:repairing return:returns:returned:returning save:saves:saved:saving
see:sees:saw:seeing sell:sells:sold:selling send:sends:sent:sending serve:serves:served:serving
shake:shakes:shook:shaking share:shares:shared:sharing shut:shuts:shut:shutting sing:sings:sang:singing
sketch:sketches:sketched:sketching smell:smells:smelled:smelling spend:spends:spent:spending
start:starts:started:starting steal:steals:stole:stealing stop:stops:stopped:stopping
store:stores:stored:storing study:studies:studied:studying sweep:sweeps:swept:sweeping
take:takes:took:taking taste:tastes:tasted:tasting tell:tells:told:telling test:tests:tested:testing
thank:thanks:thanked:thanking throw:throws:threw:throwing tie:ties:tied:tying touch:touches:touched:touching
trade:trades:traded:trading turn:turns:turned:turning use:uses:used:using visit:visits:visited:visiting
want:wants:wanted:wanting warm:warms:warmed:warming warn:warns:warned:warning wash:washes:washed:washing
watch:watches:watched:watching wear:wears:wore:wearing weigh:weighs:weighed:weighing
wrap:wraps:wrapped:wrapping write:writes:wrote:writing
"""

_INTRANSITIVE = """
arrive:arrives:arrived:arriving climb:climbs:climbed:climbing come:comes:came:coming
fall:falls:fell:falling fly:flies:flew:flying go:goes:went:going hurry:hurries:hurried:hurrying
jump:jumps:jumped:jumping laugh:laughs:laughed:laughing lie:lies:lay:lying listen:listens:listened:listening
live:lives:lived:living look:looks:looked:looking march:marches:marched:marching
play:plays:played:playing rest:rests:rested:resting ride:rides:rode:riding rise:rises:rose:rising
run:runs:ran:running sail:sails:sailed:sailing sit:sits:sat:sitting sleep:sleeps:slept:sleeping
slip:slips:slipped:slipping smile:smiles:smiled:smiling stand:stands:stood:standing
stay:stays:stayed:staying step:steps:stepped:stepping swim:swims:swam:swimming
talk:talks:talked:talking travel:travels:traveled:traveling wait:waits:waited:waiting
wake:wakes:woke:waking walk:walks:walked:walking wander:wanders:wandered:wandering
work:works:worked:working
"""

_ADJECTIVES = """
ancient bare beautiful big bitter black blue bold brave bright broad broken brown busy calm cheap clean
clear clever closed cold common cool cracked crooked curious dark deep different dirty distant double
dry dull dusty early easy empty english expensive fair familiar famous fancy fast fat final fine first
flat foreign free french fresh friendly frozen full funny gentle german giant golden good gray great
green handsome hard heavy hidden high hollow honest huge hungry important large last late lazy light
little local lonely long loose lost loud low lucky main marble modern muddy narrow native near neat new
nice noisy odd old open orange ordinary painted pale perfect plain pleasant polite poor popular pretty
private proper public purple quick quiet rare raw ready real red rich ripe rough round royal rusty safe
second secret serious sharp shiny short silent silver simple single slow small smart smooth soft solid
special square steep sticky stiff straight strange strong sudden sweet tall tame tender thick thin third
tidy tight tiny tired tough useful usual warm weak wet white wide wild wise wonderful wooden yellow young
"""

_ADVERBS = """
again alone already always away carefully early easily finally first forever gently here home indeed
inside late later near nearby never now often once outside quickly quietly rarely recently
safely seldom silently simply slowly softly somehow sometimes soon still suddenly there today
together tomorrow tonight twice upstairs usually well yesterday
"""

_NAMES = """
Adam Alice Anna Arthur Ben Betty Carol Charles Clara David Diana Edward Ellen Emma Frank Fred George
Grace Hannah Harry Helen Henry Jack James Jane John Joseph Julia Karen Kevin Laura Linda Lucy Maria
Martin Mary Michael Nancy Oliver Oscar Paul Peter Rachel Robert Rose Samuel Sarah Simon Susan Thomas
Victor Walter William
"""

_PREPOSITIONS = """
above across after against along around at before behind below beside between by from in inside into
near on outside over past through to toward under with without
"""

_DETERMINERS = "the a this that my your his her our their every another"

_NUMBERS = """
two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred
"""

_FUNCTION = """
I you he she it we they and but or so because when while if then not is was are were will would can
could should must may did does has had have been to of for as than more most very too quite almost
there what where who why how which all both few many some any no none each other something nothing
someone everyone please me him them us about up down off out back only just
"""

HELD_OUT: tuple[str, ...] = (
    "lantern", "basket", "blossom", "cabbage", "carrot", "compass", "cricket", "dentist", "donkey",
    "finch", "flint", "gardener", "hamster", "kitten", "lobster", "magnet", "mitten", "mustard",
    "panther", "pebble", "pumpkin", "rocket", "rooster", "shed", "splinter", "sunset",
    "tablet", "thimble", "trumpet", "velvet", "vest", "walnut", "willow", "blender", "chipmunk",
    "plumber", "grinder", "linen", "drifter",
)  # fmt: skip
"""Words (regularly spelled) that only the pronunciation test uses."""

_IRREGULAR_PLURALS = """
child woman wife knife leaf shelf wolf sheep tooth mouse person scissors news police music
traffic weather water milk bread butter money rain snow sand salt sugar rice wheat fog dust mud
gold coal cotton silk wool steel leather smoke steam soap honey flour cream meat grass ice oil
science supper north south east west sky hair fruit fish soup juice cheese coffee powder straw
"""


def plural(noun: str) -> str:
    """The regular English plural of `noun`."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    if noun in ("potato", "tomato"):
        return noun + "es"
    return noun + "s"


def _verbs(block: str) -> tuple[tuple[str, str, str, str], ...]:
    rows = [tuple(entry.split(":")) for entry in block.split()]
    assert all(len(row) == 4 for row in rows), "every verb has four forms"
    return tuple((row[0], row[1], row[2], row[3]) for row in rows)


NOUNS = tuple(_NOUNS.split())
IRREGULAR_PLURALS = frozenset(_IRREGULAR_PLURALS.split())
COUNTABLE = tuple(noun for noun in NOUNS if noun not in IRREGULAR_PLURALS)
TRANSITIVE = _verbs(_VERBS)
INTRANSITIVE = _verbs(_INTRANSITIVE)
ADJECTIVES = tuple(_ADJECTIVES.split())
ADVERBS = tuple(_ADVERBS.split())
NAMES = tuple(_NAMES.split())
PREPOSITIONS = tuple(_PREPOSITIONS.split())
DETERMINERS = tuple(_DETERMINERS.split())
NUMBERS = tuple(_NUMBERS.split())
FUNCTION_WORDS = tuple(_FUNCTION.split())


def lexicon() -> frozenset[str]:
    """Every word that the grammar can say, lower case, without the held-out words."""
    words = {*NOUNS, *ADJECTIVES, *ADVERBS, *NAMES, *PREPOSITIONS, *DETERMINERS, *NUMBERS, *FUNCTION_WORDS}
    words |= {plural(noun) for noun in COUNTABLE}
    words |= {form for verb in (*TRANSITIVE, *INTRANSITIVE) for form in verb}
    return frozenset(word.lower() for word in words)
