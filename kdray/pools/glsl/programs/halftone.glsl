// A picture of dots, larger where it is darker.
void mainImage(out vec4 colour, in vec2 at) {
    float dots = between(0, 2.5, 5.0);
    mat2 grid = turn(TAU * random(1));
    vec2 q = grid * centred(at) * dots, cell = floor(q) + 0.5;
    vec2 centre = cell * grid / dots;
    float tone = 0.5 + 0.5 * sin(between(2, 1.0, 4.0) * length(centre - vec2(sin(iTime), cos(iTime)) * 0.5)
        + TAU * random(3));
    tone = mix(tone, noise(2.0 * centre + iTime), random(4));
    float cover = inside(length(q - cell) - 0.15 - 0.5 * tone, dots / 14.0);
    vec3 paper = mix(ink(5), mix(ink(5), ink(6), 0.6), 0.5 + 0.5 * centred(at).x);
    colour = vec4(mix(paper, mix(ink(7), palette(tone), random(8)), cover), 1);
}
