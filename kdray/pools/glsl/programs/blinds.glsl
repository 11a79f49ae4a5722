// Slats of light and shade across a scene of soft shapes.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 0.6, 1.6), q = centred(at);
    float slat = fract(dot(q, vec2(cos(TAU * random(0)), sin(TAU * random(0)))) * between(1, 1.0, 4.0)
        + 0.3 * iTime);
    vec2 moved = p + between(2, 0.2, 1.2) * vec2(slat, slat * slat);
    float soft = simplex(moved);
    colour = vec4(palette(0.5 * soft) * (0.4 + 0.9 * slat), 1);
}
